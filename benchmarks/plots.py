"""Pictures of the results: throughput and latencies over the number of clients, or over the rate.

The only module that knows matplotlib, which is imported when something is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.summary import Row, workloads_of
from benchmarks.workloads import Workload, describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#666666")
"""Told apart by people who see colours differently (Okabe and Ito)."""
_MARKERS = "os^Dv<P"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "trireme",  # the same results give the same file
    "svg.fonttype": "none",
}


def draw(rows: Sequence[Row], stem: Path) -> list[Path]:
    """Draw what was measured over several levels; returns the files, PNG and SVG of each picture.

    Args:
        stem: the files' path without `-throughput.png` and so on.
    """
    rows = [row for row in rows if row.cell.workload.kind == "load"]
    if not rows:
        return []
    import matplotlib as mpl

    mpl.use("Agg")
    with mpl.rc_context(_STYLE.copy()):
        pictures = {"throughput": _throughput(rows), "latency": _latency(rows)}
        return [
            _save(figure, stem.with_name(f"{stem.name}-{name}.{kind}"))
            for name, figure in pictures.items()
            for kind in ("png", "svg")
        ]


def _save(figure: Figure, path: Path) -> Path:
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    figure.savefig(path, dpi=150, metadata=metadata)
    return path


def _throughput(rows: Sequence[Row]) -> Figure:
    workloads = workloads_of(rows)
    figure, axes = _grid(1, len(workloads), height=4.4)
    for ax, workload in zip(axes[0], workloads, strict=True):
        own = [row for row in rows if row.cell.workload == workload]
        for number, line in _lines(own, rows):
            _line(ax, line, "tokens_per_s", number, solid=True, scale=1.0)
        bounds = {row.cell.level: row.bound_tokens_per_s for row in own if row.bound_tokens_per_s}
        if bounds:
            x = sorted(bounds)
            y = [bounds[level] or math.nan for level in x]
            ax.plot(x, y, color="black", linestyle=":", label="bound: matrix products alone")
        ax.set_ylabel("tokens per second")
        ax.set_ylim(bottom=0)
        ax.set_title(_title(workload), fontsize=10)
        _x_axis(ax, own)
    _legend(figure, axes[0][0])
    return figure


def _latency(rows: Sequence[Row]) -> Figure:
    workloads = workloads_of(rows)
    figure, axes = _grid(2, len(workloads), height=3.6)
    kinds = (("ttft", "time to first token, s", 1e-3), ("itl", "time between tokens, ms", 1.0))
    for across, workload in enumerate(workloads):
        own = [row for row in rows if row.cell.workload == workload]
        for down, (name, label, scale) in enumerate(kinds):
            ax = axes[down][across]
            for number, line in _lines(own, rows):
                _line(ax, line, f"{name}_p50_ms", number, solid=True, scale=scale)
                _line(ax, line, f"{name}_p99_ms", number, solid=False, scale=scale)
            ax.set_yscale("log")
            _plain_log_ticks(ax)
            ax.set_ylabel(label)
            _x_axis(ax, own)
        axes[0][across].set_title(_title(workload), fontsize=10)
    _legend(figure, axes[0][0], "solid: p50, dashed: p99")
    return figure


def _grid(down: int, across: int, *, height: float) -> tuple[Figure, list[list[Axes]]]:
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(5.2 * across + 1.0, height * down + 0.7), layout="constrained")
    made = figure.subplots(down, across, squeeze=False)
    return figure, [list(line) for line in made]


def _lines(rows: Sequence[Row], all_rows: Sequence[Row]) -> list[tuple[int, list[Row]]]:
    """(number of the system, the same in each part of a picture; its rows by level)."""
    lines = []
    for number, system in enumerate(dict.fromkeys(row.system for row in all_rows)):
        own = [row for row in rows if row.system == system]
        if own:
            lines.append((number, sorted(own, key=lambda row: row.cell.level)))
    return lines


def _line(
    ax: Axes, rows: Sequence[Row], figure: str, number: int, *, solid: bool, scale: float
) -> None:
    """A system's medians as a line; where it is solid, with least and greatest as bars."""
    spreads = [row.spread(figure) for row in rows]
    x = [row.cell.level for row in rows]
    y = [scale * spread.median for spread in spreads]
    low = [scale * (spread.median - spread.low) for spread in spreads]
    high = [scale * (spread.high - spread.median) for spread in spreads]
    ax.errorbar(
        x,
        y,
        yerr=[low, high] if solid else None,
        color=_COLOURS[number % len(_COLOURS)],
        marker=_MARKERS[number % len(_MARKERS)] if solid else None,
        linestyle="-" if solid else "--",
        linewidth=1.6 if solid else 1.0,
        markersize=5,
        capsize=2.5,
        elinewidth=0.8,
        label=rows[0].system if solid else None,
    )


def _x_axis(ax: Axes, rows: Sequence[Row]) -> None:
    levels = sorted({row.cell.level for row in rows})
    is_open = rows[0].cell.loop == "open"
    ax.set_xscale("log", base=2)
    ax.set_xticks(levels, [f"{level:g}" for level in levels])
    ax.minorticks_off()
    ax.set_xlabel("requests offered per second" if is_open else "clients")


def _plain_log_ticks(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = ax.get_ylim()
    subs = (1, 2, 5) if high < 300 * low else (1, 3)
    ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _title(workload: Workload) -> str:
    return describe(workload).partition("; ")[2].partition(";")[0]


def _legend(figure: Figure, ax: Axes, note: str = "") -> None:
    handles, labels = ax.get_legend_handles_labels()
    # the bound, a plain line, comes before the systems, which have error bars: put it last
    order = sorted(range(len(labels)), key=lambda index: labels[index].startswith("bound"))
    across = len({one.get_position().x0 for one in figure.axes})
    figure.legend(
        [handles[index] for index in order],
        [labels[index] for index in order],
        loc="outside lower center",
        ncols=min(3 * across, len(labels)),
        title=note or None,
        frameon=False,
    )
