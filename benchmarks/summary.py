"""Rows of the results: a system in a cell, over all repeats, beside the bound. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.bound import Bound, share
from benchmarks.measure import Measured, Result
from benchmarks.stats import Run, Spread
from benchmarks.workloads import Cell, Workload


@dataclass(frozen=True, slots=True)
class Row:
    """One system in one cell.

    Attributes:
        bound_tokens_per_s: what the matrix products alone would allow; None where nothing is
            known of them, or where the load is no closed loop.
    """

    system: str
    cell: Cell
    runs: tuple[Run, ...]
    bound_tokens_per_s: float | None = None

    @property
    def failed(self) -> int:
        """Requests without a full answer, over all repeats."""
        return sum(run.failed for run in self.runs)

    @property
    def first_error(self) -> str | None:
        return next((run.first_error for run in self.runs if run.first_error), None)

    def spread(self, figure: str) -> Spread:
        """A figure of `Run`, or of its `details`, over the repeats."""
        found = []
        for run in self.runs:
            value = run.details[figure] if figure in run.details else getattr(run, figure, None)
            found.append(math.nan if value is None else float(value))
        return Spread.of(found)

    @property
    def share_of_bound(self) -> float | None:
        """Median tokens a second as a part of the bound's."""
        measured = self.spread("tokens_per_s").median
        return None if math.isnan(measured) else share(measured, self.bound_tokens_per_s)


def rows_of(results: Sequence[Result], bound: Bound | None) -> list[Row]:
    """Cells in the order of measuring, in each the systems in theirs."""
    first = min((result.repeat for result in results), default=0)
    order = [(result.cell, result.system) for result in results if result.repeat == first]
    order += [key for result in results if (key := (result.cell, result.system)) not in order]
    rows = [
        Row(
            system,
            cell,
            tuple(r.run for r in results if (r.cell, r.system) == (cell, system)),
        )
        for cell, system in dict.fromkeys(order)
    ]
    return [
        replace(row, bound_tokens_per_s=_bound_of(row, rows, bound)) if bound else row
        for row in rows
    ]


def _bound_of(row: Row, rows: Sequence[Row], bound: Bound) -> float | None:
    cell = row.cell
    if cell.loop != "closed":
        return None
    own = _computed_tokens(row)
    others = [_computed_tokens(other) for other in rows if other.cell == cell]
    # a server that does not count its prompts is held to what another one counted
    known = own if own is not None else next((one for one in others if one is not None), None)
    prompt_tokens = cell.workload.prompt_words if known is None else known
    return bound.tokens_per_s(cell.clients, prompt_tokens, cell.workload.tokens)


def _computed_tokens(row: Row) -> float | None:
    """Tokens of a prompt that had to be computed: those that no cache had."""
    found = [each for run in row.runs if (each := run.computed_tokens_each) is not None]
    return statistics.median(found) if found else None


def times_faster(row: Row, rows: Sequence[Row]) -> float | None:
    """Of a cell with a shared prefix: median time to the first token with a prefix of its own,
    divided by that with the shared one. None in other cells."""
    if not row.cell.same_prefix:
        return None
    base = [
        other.spread("ttft_p50_ms").median
        for other in rows
        if other.system == row.system
        and other.cell.workload == row.cell.workload
        and not other.cell.same_prefix
    ]
    return base[0] / row.spread("ttft_p50_ms").median if base else None


def workloads_of(rows: Sequence[Row]) -> list[Workload]:
    """The workloads that were measured, each once."""
    return list(dict.fromkeys(row.cell.workload for row in rows))


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All workloads with all their runs."""
    return [
        {
            **asdict(workload),
            "rows": [_row_json(row, rows) for row in rows if row.cell.workload == workload],
        }
        for workload in workloads_of(rows)
    ]


def _row_json(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    faster = times_faster(row, rows)
    return {
        "system": row.system,
        "label": row.cell.label,
        "loop": row.cell.loop,
        "level": row.cell.level,
        "tokens_per_s": row.runs and _spread_json(row.spread("tokens_per_s")),
        "bound_tokens_per_s": row.bound_tokens_per_s,
        "share_of_bound": row.share_of_bound,
        **({"ttft_times_shorter": faster} if faster is not None else {}),
        "runs": [run.as_json() for run in row.runs],
    }


def _spread_json(spread: Spread) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in asdict(spread).items()}


def failures(measured: Measured, rows: Sequence[Row]) -> list[str]:
    """A line for each system that failed somewhere: how often, and the first reason."""
    lines = [
        f"{row.system}, {row.cell.workload.name}, {row.cell.label}: "
        f"{row.failed} requests failed, the first with: {row.first_error}"
        for row in rows
        if row.failed
    ]
    return lines + [f"{name} was lost: {reason}" for name, reason in measured.lost.items()]
