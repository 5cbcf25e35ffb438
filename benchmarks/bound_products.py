"""Times a model's matrix products alone, with packed weights: by oneDNN, and where the engine has
its own, by those too, from weights in 16 bits and in 12. Imports torch: it is run as a program of
its own, `python -m benchmarks.bound_products MODEL`, and writes one JSON object. Of these ways the
fastest counts, number of rows by number of rows.

The weights are as many and as large as the model's, so that no cache holds them from one pass to
the next. Products that take the same input (query, key and value; gate and up) are one.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from worker.model.linear_cpu import Products, Weight

_ONE_PRODUCT = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
}
_SMALL_BYTES = 32 * 1024 * 1024


def shapes_of(folder: Path) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """((out, in) of each product of the layers, (out, in) of the output layer)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    grouped: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for name, layer in model.named_modules():
        # GPT-2's layers are Conv1D, with the weight turned round
        turned = type(layer).__name__ == "Conv1D"
        if (isinstance(layer, torch.nn.Linear) or turned) and layer is not head:
            parent, _, last = name.rpartition(".")
            shape = tuple(layer.weight.shape)
            key = f"{parent}.{_ONE_PRODUCT.get(last, last)}"
            grouped[key].append((shape[1], shape[0]) if turned else (shape[0], shape[1]))
    products = [(sum(out for out, _ in group), group[0][1]) for group in grouped.values()]
    return products, (head.weight.shape[0], head.weight.shape[1])


def dtype_of(folder: Path) -> Any:
    """The dtype in which the engine computes this checkpoint on a CPU (`--dtype auto`)."""
    import torch
    from transformers import AutoConfig

    from worker.model.loader import pick_dtype

    return pick_dtype("auto", AutoConfig.from_pretrained(folder), torch.device("cpu"))


def ways(dtype: Any) -> dict[str, Products]:
    """Ways to multiply, by name."""
    from worker.model.kernels import load_kernels
    from worker.model.linear_cpu import OneDnnProducts

    found: dict[str, Products] = {"onednn": OneDnnProducts()}
    kernels = load_kernels(lambda _text: None)
    if kernels is not None and (own := kernels[dtype].products) is not None:
        found["own"] = own
        found["squeezed"] = own.with_spare(sys.maxsize)
    return found


def packed(products: Products, shapes: Sequence[tuple[int, int]], dtype: Any) -> list[Weight]:
    """Random weights of these shapes, (out, in), packed."""
    import torch

    def linear(out: int, width: int) -> torch.nn.Linear:
        with torch.device("meta"):
            layer = torch.nn.Linear(width, out, bias=False, dtype=dtype)
        layer.weight = torch.nn.Parameter(torch.randn(out, width).to(dtype), requires_grad=False)
        return layer

    return [products.weight([linear(*shape)]) for shape in shapes]


def one_pass(weights: Sequence[Weight], inputs: Sequence[int], dtype: Any, rows: int) -> float:
    """Seconds for one product with each of the weights, of the given widths."""
    import torch

    x = {width: torch.randn(rows, width).to(dtype) for width in set(inputs)}
    begin = time.perf_counter()
    for weight, width in zip(weights, inputs, strict=True):
        weight.linear(x[width])
    return time.perf_counter() - begin


def rounds_of(measure: dict[str, Callable[[], float]], seconds: float) -> dict[str, list[float]]:
    """Each of them in turn, again and again, for about so many seconds; three times at least."""
    times: dict[str, list[float]] = {name: [] for name in measure}
    for one in measure.values():
        one()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times[next(iter(times))]) < 3:
        for name, one in measure.items():
            times[name].append(one())
    return times


def main(
    model: Annotated[Path, typer.Argument(help="model folder; only its config is read")],
    rows: Annotated[str, typer.Option(help="rows of a decode step")] = "1,8,16,32",
    chunks: Annotated[str, typer.Option(help="rows of a prefill chunk")] = "256,512",
    threads: Annotated[int, typer.Option(min=0, help="0: as the engine takes them")] = 0,
    seconds: Annotated[float, typer.Option(min=0, help="how long to measure")] = 20.0,
) -> None:
    """Time a model's matrix products alone; writes one JSON object."""
    import torch

    from worker.engine.cpus import usable_cores

    dtype = dtype_of(model)
    layers, head = shapes_of(model)
    count = sum(out * width for out, width in [*layers, head])
    threads = threads or (1 if count * dtype.itemsize < _SMALL_BYTES else usable_cores())
    torch.set_num_threads(threads)
    measure: dict[str, Callable[[], float]] = {}
    for way, products in ways(dtype).items():
        layer_products = partial(
            one_pass, packed(products, layers, dtype), [width for _, width in layers], dtype
        )
        head_product = partial(one_pass, packed(products, [head], dtype), [head[1]], dtype)
        for number in sorted({int(text) for text in rows.split(",")}):
            # oneDNN takes a slow way for few rows, so the engine pads them too
            padded = max(products.min_rows, number) if dtype == torch.bfloat16 else number
            measure[f"layers/{number}/{way}"] = partial(layer_products, padded)
            measure[f"head/{number}/{way}"] = partial(head_product, padded)
        for number in sorted({int(text) for text in chunks.split(",")}):
            measure[f"chunk/{number}/{way}"] = partial(layer_products, number)
    with torch.inference_mode():
        each = rounds_of(measure, seconds)
    times: dict[str, list[float]] = {}
    fastest: dict[str, str] = {}
    for name, found in each.items():
        product, _, way = name.rpartition("/")
        if product not in times or statistics.median(found) < statistics.median(times[product]):
            times[product], fastest[product] = found, way
    print(
        json.dumps(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "threads": threads,
                "parameters": count,
                "torch": torch.__version__,
                "omp": {name: os.environ[name] for name in os.environ if "OMP" in name},
                "fastest": fastest,
                "seconds": times,
            }
        )
    )


if __name__ == "__main__":
    typer.run(main)
