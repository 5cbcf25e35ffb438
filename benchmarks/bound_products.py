"""Times a model's matrix products alone, with weights packed for oneDNN. Imports torch: it is run
as a program of its own, `python -m benchmarks.bound_products MODEL`, and writes one JSON object.

The weights are as many and as large as the model's, so that no cache holds them from one pass to
the next. Products that take the same input (query, key and value; gate and up) are one.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

_ONE_PRODUCT = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
}
_PACKED_FOR_ROWS = 16
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


def packed(shapes: Sequence[tuple[int, int]], dtype: Any) -> list[Any]:
    """Random weights of these shapes, packed."""
    import torch

    pack = torch.ops.mkldnn._reorder_linear_weight
    return [pack(torch.randn(shape).to(dtype), _PACKED_FOR_ROWS) for shape in shapes]


def one_pass(weights: Sequence[Any], inputs: Sequence[int], dtype: Any, rows: int) -> float:
    """Seconds for one product with each of the weights, of the given widths."""
    import torch

    x = {width: torch.randn(rows, width).to(dtype) for width in set(inputs)}
    begin = time.perf_counter()
    for weight, width in zip(weights, inputs, strict=True):
        torch.ops.mkldnn._linear_pointwise(x[width], weight, None, "none", [], "")
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
    layer_weights, head_weights = packed(layers, dtype), packed([head], dtype)
    layer_products = partial(one_pass, layer_weights, [width for _, width in layers], dtype)
    head_product = partial(one_pass, head_weights, [head[1]], dtype)
    measure: dict[str, Callable[[], float]] = {}
    for number in sorted({int(text) for text in rows.split(",")}):
        # a single row takes a slow way in bfloat16, so the engine pads it too
        padded = max(2, number) if dtype == torch.bfloat16 else number
        measure[f"layers/{number}"] = partial(layer_products, padded)
        measure[f"head/{number}"] = partial(head_product, padded)
    for number in sorted({int(text) for text in chunks.split(",")}):
        measure[f"chunk/{number}"] = partial(layer_products, number)
    with torch.inference_mode():
        times = rounds_of(measure, seconds)
    print(
        json.dumps(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "threads": threads,
                "parameters": count,
                "torch": torch.__version__,
                "omp": {name: os.environ[name] for name in os.environ if "OMP" in name},
                "seconds": times,
            }
        )
    )


if __name__ == "__main__":
    typer.run(main)
