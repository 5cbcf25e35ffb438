"""The paged engine on one GPU, against what the machine allows and against transformers.

`python -m benchmarks.gpu` needs torch, transformers, accelerate and psutil, nothing else of
Trireme's packages, and downloads nothing: models of usual shapes get random weights on the device.
It takes less than ten minutes. `--dry-run-cpu` runs the same code with a tiny model on the CPU.

Bounds: a decode step reads every weight once, and the keys and values of all sequences; it
multiplies each weight with one row a sequence. Bandwidth is that of a large copy (bytes read and
written), the rate that of a large matrix product, both measured first, on random data.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from worker.engine.config import EngineConfig
from worker.engine.engine import EngineCore
from worker.engine.protocol import Job, SequenceParams, StepOutput
from worker.model.build import build_paged
from worker.model.loader import LoadedModel

SHAPES: Final[dict[str, dict[str, int]]] = {
    "tiny": {"hidden": 64, "inner": 128, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 512},
    "1b": {
        "hidden": 2048, "inner": 8192, "layers": 16, "heads": 32, "kv_heads": 8, "vocab": 128256
    },
    "8b": {
        "hidden": 4096, "inner": 14336, "layers": 32, "heads": 32, "kv_heads": 8, "vocab": 128256
    },
}  # fmt: skip
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "graphs, overlapped": {},
    "graphs": {"overlap": "off"},
    "overlapped": {"enforce_eager": True},
    "neither": {"enforce_eager": True, "overlap": "off"},
}
PEER: Final = "transformers"


@dataclass(frozen=True)
class Load:
    """Sequences of the same length, all at once."""

    sequences: int
    prompt: int
    new: int


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches: bytes a second of a copy, operations a second of a product."""

    bytes_per_s: float
    flops_per_s: float


@dataclass
class Row:
    """One measurement. `share` is the bound of a decode step over its median time.

    Only steps count in which all sequences are decoded.
    """

    shape: str
    system: str
    load: Load
    total_s: float | None = None
    tokens_per_s: float | None = None
    step_ms: float | None = None
    bound_ms: float | None = None
    share: float | None = None
    first_step_ms: float | None = None
    note: str = ""


@dataclass
class Report:
    """Everything that is written to the file."""

    machine: dict[str, Any]
    ceilings: Ceilings | None = None
    rows: list[Row] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> Report:
    """Measure, print a table, and write JSON to `--out`."""
    options = _options(arguments)
    device = torch.device("cpu" if options.dry_run_cpu else "cuda")
    shapes = ["tiny"] if options.dry_run_cpu else options.shapes.split(",")
    report = Report(_machine(device))
    report.ceilings = _ceilings(device)
    end = time.monotonic() + options.minutes * 60
    one, many = Load(1, 128, 128), Load(256, 128, 256)
    if options.dry_run_cpu:
        one, many = Load(1, 9, 5), Load(3, 9, 5)
    for shape in shapes:
        for system in options.systems or [*VARIANTS, PEER]:
            for load in (one, many):
                _measure(report, end, shape, system, load, device)
    text = json.dumps(asdict(report), indent=1)
    if options.out:
        Path(options.out).write_text(text + "\n")
    print(_table(report))
    return report


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--shapes", default="1b,8b", help="of 1b, 8b")
    parser.add_argument(
        "--systems", action="append", choices=[*VARIANTS, PEER], help="all, when none is given"
    )
    parser.add_argument("--minutes", type=float, default=8.5, help="begin nothing after so long")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument(
        "--dry-run-cpu", action="store_true", help="the same code, tiny, on the CPU"
    )
    return parser.parse_args(arguments)


def _machine(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(device),
    }
    if device.type == "cuda":
        found["name"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    return found


def _measure(
    report: Report,
    end: float,
    shape: str,
    system: str,
    load: Load,
    device: torch.device,
) -> None:
    """One row; what fails is a row too, so that the rest is measured."""
    row = Row(shape, system, load)
    report.rows.append(row)
    if time.monotonic() > end:
        row.note = "no time left"
        return
    print(f"{shape}: {system}, {load.sequences} sequences", file=sys.stderr, flush=True)
    try:
        if system == PEER:
            _transformers(row, shape, load, device)
        else:
            assert report.ceilings is not None
            _engine(row, shape, load, device, VARIANTS[system], report.ceilings)
    except Exception as error:  # a row of its own kind
        row.note = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        traceback.print_exc()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _ceilings(device: torch.device) -> Ceilings:
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    size = 8192 if on_gpu else 256
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product_s = _median_s(lambda: left @ right, device)
    source = torch.randn(2**31 if on_gpu else 2**22, device=device, dtype=dtype)
    target = torch.empty_like(source)
    copy_s = _median_s(lambda: target.copy_(source), device)
    return Ceilings(2 * source.nbytes / copy_s, 2 * size**3 / product_s)


def _median_s(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for number in range(repeats + 3):
        wait()
        began = time.perf_counter()
        work()
        wait()
        if number >= 3:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def _model(shape: str, device: torch.device) -> Any:
    sizes = SHAPES[shape]
    config = transformers.LlamaConfig(
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["inner"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        vocab_size=sizes["vocab"],
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.to(device).eval().requires_grad_(False)


def _prompts(shape: str, load: Load) -> list[list[int]]:
    rng = random.Random(load.sequences)
    vocab = SHAPES[shape]["vocab"]
    return [[rng.randrange(3, vocab) for _ in range(load.prompt)] for _ in range(load.sequences)]


def _engine(
    row: Row,
    shape: str,
    load: Load,
    device: torch.device,
    values: dict[str, Any],
    ceilings: Ceilings,
) -> None:
    """Our engine's core, in this process: what a request costs beside the network."""
    model = _model(shape, device)
    loaded = LoadedModel(
        model=model,
        kind="causal",
        device=model.device,
        dtype=model.dtype,
        context_length=4096,
        vocab_size=SHAPES[shape]["vocab"],
        eos_token_ids=(),
        digest="",
    )
    if device.type == "cpu" and "overlap" not in values:
        values = {**values, "overlap": "on"}
    config = EngineConfig(model_path="", max_running=max(load.sequences, 2), **values)
    core = build_paged(config, loaded, None, lambda _text: None).core
    assert isinstance(core, EngineCore)
    row.note = type(core.runner._attention.backend).__name__  # type: ignore[union-attr]
    _answer(core, "warm", _prompts(shape, Load(load.sequences, load.prompt, 4)), 4)
    began = time.perf_counter()
    steps = _answer(core, "run", _prompts(shape, load), load.new)
    row.total_s = time.perf_counter() - began
    row.tokens_per_s = load.sequences * load.new / row.total_s
    row.first_step_ms = 1000 * steps[0][1]
    decode = [seconds for given, seconds in steps[1:] if given == load.sequences]
    if not decode:
        row.note += ", never all sequences in one step"
        return
    row.step_ms = 1000 * statistics.median(decode)
    row.bound_ms = 1000 * bound_s(shape, load, model.dtype.itemsize, ceilings)
    row.share = row.bound_ms / row.step_ms


def _answer(
    core: EngineCore, name: str, prompts: list[list[int]], new: int
) -> list[tuple[int, float]]:
    """Greedy answers; of each step that gave tokens how many, and its seconds."""
    params = SequenceParams(max_tokens=new, temperature=0.0)
    for number, prompt in enumerate(prompts):
        core.submit(Job(f"{name} {number}", prompt, params, cache_salt=name))
    steps: list[tuple[int, float]] = []
    last = time.perf_counter()
    while core.has_work:
        outputs = core.step()
        now = time.perf_counter()
        given = sum(len(one.ids) for _job, one in outputs if isinstance(one, StepOutput))
        if given:
            steps.append((given, now - last))
            last = now
    total = sum(given for given, _seconds in steps)
    if total != len(prompts) * new:
        raise RuntimeError(f"{total} tokens came, {len(prompts) * new} were asked for")
    return steps


def bound_s(shape: str, load: Load, itemsize: int, ceilings: Ceilings) -> float:
    """The least time of a decode step half-way through the answers."""
    sizes = SHAPES[shape]
    hidden, layers = sizes["hidden"], sizes["layers"]
    kv_width = hidden // sizes["heads"] * sizes["kv_heads"]
    per_layer = hidden * (2 * hidden + 2 * kv_width + 3 * sizes["inner"])
    weights = layers * per_layer + sizes["vocab"] * hidden
    tokens = load.sequences * (load.prompt + load.new // 2)
    kv_bytes = 2 * layers * kv_width * tokens * itemsize
    attention = 4 * layers * hidden * tokens
    return max(
        (weights * itemsize + kv_bytes) / ceilings.bytes_per_s,
        (2 * weights * load.sequences + attention) / ceilings.flops_per_s,
    )


def _transformers(row: Row, shape: str, load: Load, device: torch.device) -> None:
    """Its own continuous batching, with what it finds best here: flash attention, CUDA graphs."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model = _model(shape, device)
    model.set_attn_implementation("sdpa")
    sizes = {} if device.type == "cuda" else {"num_blocks": 8, "max_batch_tokens": 64}
    config = ContinuousBatchingConfig(use_cuda_graph=device.type == "cuda", **sizes)
    generation = transformers.GenerationConfig(
        max_new_tokens=load.new, do_sample=False, eos_token_id=-1, pad_token_id=0
    )

    def run(new: int) -> float:
        generation.max_new_tokens = new
        began = time.perf_counter()
        found = model.generate_batch(
            inputs=_prompts(shape, load),
            generation_config=generation,
            continuous_batching_config=config,
            progress_bar=False,
            persistent_manager=True,
        )
        given = sum(len(one.generated_tokens) for one in found.values())
        if given != load.sequences * new:
            raise RuntimeError(f"{given} tokens came, {load.sequences * new} were asked for")
        return time.perf_counter() - began

    try:
        run(load.new)  # graphs and pools are made
        row.total_s = run(load.new)
        row.tokens_per_s = load.sequences * load.new / row.total_s
        row.note = f"attention {model.config._attn_implementation}"
    finally:
        destroy = getattr(model, "destroy_cached_continuous_batching_manager", None)
        if destroy is not None:
            destroy()


def _table(report: Report) -> str:
    assert report.ceilings is not None
    lines = [
        json.dumps(report.machine),
        f"copy {report.ceilings.bytes_per_s / 1e12:.3g} TB/s, product "
        f"{report.ceilings.flops_per_s / 1e12:.3g} TFLOP/s",
        "",
        "| model | system | sequences | tokens/s | decode step, ms | bound, ms | share | note |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report.rows:
        numbers = [_number(row.tokens_per_s), _number(row.step_ms), _number(row.bound_ms)]
        share = "" if row.share is None else f"{100 * row.share:.0f} %"
        cells = [row.shape, row.system, str(row.load.sequences), *numbers, share, row.note]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    main()
