"""The results as one table, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tests.chaos.scene import Result

NUMBERS = ("requests", "lost", "missing", "extra", "moved", "worst gap")
HEADINGS = ("fault", *NUMBERS[:-1], "time to", "worst gap", "promise", "verdict")


def table(results: Sequence[Result]) -> Table:
    """fault, requests, lost, tokens, time to detect, worst gap, promise, verdict."""
    made = Table(box=box.SIMPLE_HEAD, show_lines=False, pad_edge=False)
    for heading in HEADINGS:
        made.add_column(heading, justify="right" if heading in NUMBERS else "left")
    for result in results:
        made.add_row(*cells(result))
    return made


def cells(result: Result) -> tuple[str, ...]:
    """One line of the table. `moved` are requests that a client sent again to another gateway."""
    tally = result.tally
    return (
        result.fault,
        str(tally.requests),
        str(tally.lost + (tally.differing if not tally.missing + tally.extra else 0)),
        str(tally.missing),
        str(tally.extra),
        str(tally.moved),
        "\n".join(f"{one.what} {shown(one.seconds)}" for one in result.times),
        shown(tally.worst_gap_s) if tally.worst_gap_s else "",
        result.promise,
        result.verdict,
    )


def shown(seconds: float) -> str:
    """Milliseconds below a second."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def markdown(results: Sequence[Result]) -> str:
    """The same for a page."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    lines += [f"| {' | '.join(c.replace(chr(10), ', ') for c in cells(one))} |" for one in results]
    return "\n".join(lines)


def explain(console: Console, result: Result) -> None:
    """What was noted and what is not as promised, line by line."""
    for text in (*result.notes, *result.broken, *result.tally.faults):
        console.print(f"    {text}", markup=False, highlight=False, soft_wrap=True)


def write(results: Sequence[Result], path: Path) -> None:
    path.write_text(json.dumps([one.as_json() for one in results], indent=1) + "\n")
