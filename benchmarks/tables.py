"""The results as tables, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from benchmarks.stats import Spread, short
from benchmarks.summary import Row, times_faster, workloads_of
from benchmarks.workloads import Workload, describe

Shown = Spread | str
CAPTION = "medians over the repeats{spread}; times in ms, from the client's side"
WIDE = 110
"""Columns of a terminal that has room for the least and the greatest too."""


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and what stands below it."""

    heading: str
    value: Callable[[Row, Sequence[Row]], Shown]


def _figure(heading: str, name: str) -> Column:
    return Column(heading, lambda row, rows: row.spread(name))


def _share(row: Row, rows: Sequence[Row]) -> str:
    return "–" if row.share_of_bound is None else f"{100 * row.share_of_bound:.0f} %"


def _faster(row: Row, rows: Sequence[Row]) -> str:
    faster = times_faster(row, rows)
    return "" if faster is None else f"{short(faster)}x"


_LATENCIES = (
    _figure("TTFT\np50", "ttft_p50_ms"),
    _figure("TTFT\np99", "ttft_p99_ms"),
    _figure("ITL\np50", "itl_p50_ms"),
    _figure("ITL\np99", "itl_p99_ms"),
)
_RATE = _figure("tokens/s", "tokens_per_s")
_CLOSED = (_RATE, Column("of\nbound", _share), *_LATENCIES)
_OPEN = (
    _figure("done/s", "requests_per_s"),
    _RATE,
    *_LATENCIES,
    _figure("E2E\np50", "e2e_p50_ms"),
    _figure("E2E\np99", "e2e_p99_ms"),
    _figure("at\nonce", "clients"),
)
_PREFIX = (
    _figure("TTFT\np50", "ttft_p50_ms"),
    _figure("TTFT\np99", "ttft_p99_ms"),
    Column("shorter", _faster),
    _figure("tokens\ncached", "cached_tokens"),
)
_LONG = (
    _figure("ITL\np50", "quiet_itl_p50_ms"),
    _figure("ITL\np99", "quiet_itl_p99_ms"),
    _figure("p50\nbeside long", "disturbed_itl_p50_ms"),
    _figure("p99\nbeside long", "disturbed_itl_p99_ms"),
    _figure("p99\nratio", "itl_p99_ratio"),
    _figure("TTFT\nof long", "long_ttft_p50_ms"),
)
_CPU = _figure("CPU ms/\n1000 tokens", "cpu_ms_per_1000_tokens")


def columns_of(workload: Workload, rows: Sequence[Row], *, cpu: bool) -> tuple[Column, ...]:
    """What is shown of a workload."""
    if workload.kind == "prefix":
        columns: tuple[Column, ...] = _PREFIX
    elif workload.kind == "long":
        columns = _LONG
    else:
        columns = _OPEN if rows[0].cell.loop == "open" else _CLOSED
    return (*columns, _CPU) if cpu else columns


def _first_heading(rows: Sequence[Row]) -> str:
    if rows[0].cell.loop == "open":
        return "offered"
    kind = rows[0].cell.workload.kind
    return {"load": "clients", "prefix": "prefix", "long": "short +\nlong"}[kind]


def terminal_tables(rows: Sequence[Row], *, cpu: bool, width: int) -> list[Table]:
    """One table a workload, for a terminal of `width` columns."""
    wide = width >= WIDE
    caption = CAPTION.format(spread=", least–greatest below them" if wide else "")

    def shown(value: Shown) -> str:
        return value if isinstance(value, str) else value.show() if wide else value.median_text()

    tables = []
    for workload in workloads_of(rows):
        own = [row for row in rows if row.cell.workload == workload]
        table = Table(
            title=describe(workload),
            caption=caption,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column(_first_heading(own), justify="right", no_wrap=True)
        table.add_column("system", no_wrap=True)
        columns = columns_of(workload, own, cpu=cpu)
        for column in columns:
            table.add_column(column.heading, justify="right", no_wrap=True)
        before = None
        for row in own:
            if before is not None and row.cell != before:
                table.add_section()
            values = [column.value(row, own) for column in columns]
            name = f"{row.system}\n[red]{row.failed} failed[/red]" if row.failed else row.system
            table.add_row(
                row.cell.label if row.cell != before else "",
                name,
                *(shown(one) for one in values),
            )
            before = row.cell
        tables.append(table)
    return tables


def markdown(rows: Sequence[Row], *, cpu: bool) -> str:
    """The same tables for a page."""
    text = ""
    for workload in workloads_of(rows):
        own = [row for row in rows if row.cell.workload == workload]
        columns = columns_of(workload, own, cpu=cpu)
        names = [_first_heading(own), "system", *(column.heading for column in columns)]
        headings = [name.replace("/\n", "/").replace("\n", " ") for name in names]
        text += f"{describe(workload)}\n\n| {' | '.join(headings)} |\n"
        text += "|" + "---|" * len(headings) + "\n"
        for row in own:
            values = [column.value(row, own) for column in columns]
            name = f"{row.system} ({row.failed} failed)" if row.failed else row.system
            cells = [
                row.cell.label,
                name,
                *(one if isinstance(one, str) else one.line() for one in values),
            ]
            text += f"| {' | '.join(cells)} |\n"
        text += "\n"
    return text
