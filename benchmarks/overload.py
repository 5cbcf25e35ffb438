"""What a stack does with more than it can: `python -m benchmarks.overload`.

Measures the capacity of a simulated worker behind a gateway, offers multiples of it in an open
loop, and compares what comes of it with what is promised.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.loops import run
from benchmarks.machine import machine, versions
from benchmarks.overload_load import Level, Plan, capacity, offer
from benchmarks.overload_plot import draw
from benchmarks.stack import OwnStack, own_stack
from benchmarks.stats import short

WORK = Path(".trireme/overload")
GOODPUT_SHARE = 0.95
REJECTED_MS = 50.0
NORMAL_S = 10.0
GROWTH_MIB = 32.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    factors: Annotated[str, typer.Option(help="multiples of the capacity, a,b")] = "1,2,4,10",
    seconds: Annotated[float, typer.Option(min=2, help="how long each is offered")] = 30.0,
    running: Annotated[int, typer.Option(min=1, help="sequences that the worker runs")] = 16,
    queue: Annotated[int, typer.Option(min=0, help="requests that may wait there")] = 32,
    tokens: Annotated[int, typer.Option(min=2, help="length of each answer")] = 128,
    deadline_s: Annotated[float, typer.Option(min=0.1, help="what a client waits for")] = 10.0,
    out: Annotated[Path, typer.Option(help="JSON file; the picture lies beside it")] = WORK
    / "overload.json",
) -> None:
    """Goodput, rejections, latencies and memory at 1, 2, 4 and 10 times the capacity.

    Exit code 1 when something is not as promised.
    """
    console = Console(highlight=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    plan = Plan(tokens=tokens, running=running, queue=queue, deadline_s=deadline_s)
    with own_stack(plan.worker_args(), out.parent / "logs") as stack:
        most, levels = run(_sweep(stack, plan, _numbers(factors), seconds, console))
    found = verdicts(levels)
    Console(highlight=False, width=max(console.width, 170)).print(table(levels))
    for text, kept in found:
        console.print(f"{'kept  ' if kept else 'MISSED'}  {text}", markup=False)
    result = {
        "command": " ".join(["python -m benchmarks.overload", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "plan": asdict(plan),
        "capacity_requests_per_s": most,
        "levels": [asdict(level) for level in levels],
        "promises": [{"text": text, "kept": kept} for text, kept in found],
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    pictures = draw(levels, out.with_suffix(""))
    console.print(f"written: {', '.join(str(path) for path in (out, *pictures))}", markup=False)
    sys.exit(not all(kept for _text, kept in found))


def _numbers(text: str) -> list[float]:
    try:
        found = [float(one) for one in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of numbers") from error
    if not found or min(found) <= 0:
        raise typer.BadParameter(f"each factor must be above 0, not {text!r}")
    return found


async def _sweep(
    stack: OwnStack, plan: Plan, factors: Sequence[float], seconds: float, console: Console
) -> tuple[float, list[Level]]:
    most = await capacity(stack.gateway_url, plan, random.Random(0))
    console.print(f"capacity: {most:.1f} requests a second, {most * plan.tokens:.0f} tokens")
    levels = []
    for factor in factors:
        levels.append(await offer(stack, plan, factor, most, seconds))
        console.print(f"{factor:g}x is done")
    return most, levels


def verdicts(levels: Sequence[Level]) -> list[tuple[str, bool]]:
    """Each promise with what was measured, and whether it was kept."""
    peak = max(level.goodput_tokens_per_s for level in levels)
    shares = {level.factor: level.goodput_tokens_per_s / peak for level in levels}
    beyond = {factor: share for factor, share in shares.items() if 1 < factor <= 4}
    worst = max((level.rejected_p99_ms for level in levels if level.rejected), default=0.0)
    grown = max(level.grown_mib for level in levels)
    normal_s = max(level.back_to_normal_s for level in levels)
    bad = sum(level.faults for level in levels)
    resets = sum(level.resets for level in levels)
    found = [
        (f"rejections within {REJECTED_MS:g} ms: p99 {short(worst)} ms", worst < REJECTED_MS),
        (f"flat memory: at most {grown:+.1f} MiB while it was offered", grown < GROWTH_MIB),
        (
            f"back to normal within {NORMAL_S:g} s: {normal_s:.1f} s",
            normal_s < NORMAL_S,
        ),
        (f"no 5xx but 503 and 504: {bad}", bad == 0),
        (f"no resets: {resets}", resets == 0),
    ]
    if beyond:
        least = min(beyond.values())
        text = f"goodput up to 4x at least {GOODPUT_SHARE:.0%} of the peak: {least:.1%}"
        found.insert(0, (text, least >= GOODPUT_SHARE))
    return found


def table(levels: Sequence[Level]) -> Table:
    """One line for each level."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    lines = [row(level) for level in levels]
    for heading in lines[0]:
        made.add_column(heading, justify="right")
    for line in lines:
        made.add_row(*line.values())
    return made


def row(level: Level) -> dict[str, str]:
    """What is shown of a level; times in ms, memory in MiB."""
    statuses = ", ".join(f"{number} x {status}" for status, number in level.rejected.items())
    return {
        "offered": f"{level.factor:g}x, {level.offered_per_s:.0f}/s",
        "goodput\ntokens/s": f"{level.goodput_tokens_per_s:.0f}",
        "goodput\nrequests/s": f"{level.goodput_requests_per_s:.1f}",
        "rejected": statuses or "none",
        "rejected in\np50 / p99": _pair(level.rejected_p50_ms, level.rejected_p99_ms),
        "TTFT\np50 / p99": _pair(level.ttft_p50_ms, level.ttft_p99_ms),
        "E2E\np50 / p99": _pair(level.e2e_p50_ms, level.e2e_p99_ms),
        "too late": str(level.late),
        "normal\nafter": f"{level.back_to_normal_s:.1f} s",
        "other 5xx": str(level.faults),
        "resets": str(level.resets),
        "memory\ngateway": _memory(level, "gateway"),
        "memory\nworker": _memory(level, "worker"),
        "cores\nclient / gateway / worker": " / ".join(
            f"{level.cores[tier]:.2f}" for tier in ("client", "gateway", "worker")
        ),
    }


def _pair(low: float, high: float) -> str:
    return f"{short(low)} / {short(high)}" if low == low else "–"


def _memory(level: Level, tier: str) -> str:
    before, peak = level.memory_mib[tier]
    return f"{before:.0f} → {peak:.0f}"


if __name__ == "__main__":
    app()
