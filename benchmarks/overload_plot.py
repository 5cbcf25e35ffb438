"""Pictures of an overload sweep: goodput and rejections, latencies of the admitted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.overload_load import Level

_STYLE = {"axes.grid": True, "grid.alpha": 0.3, "svg.hashsalt": "trireme", "svg.fonttype": "none"}


def draw(levels: Sequence[Level], stem: Path) -> list[Path]:
    """Draw over the offered load; returns a PNG and an SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE.copy()):  # type: ignore[arg-type]
        figure = Figure(figsize=(10.5, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        x = [level.factor for level in levels]
        names = [f"{factor:g}x" for factor in x]
        goodput = [level.goodput_tokens_per_s for level in levels]
        left.plot(x, goodput, "o-", color="#0072B2", label="goodput")
        offered = [goodput[0] / x[0] * factor for factor in x]
        left.plot(x, offered, ":", color="black", label="offered")
        left.set_ylim(0, 1.35 * max(goodput))
        left.set_ylabel("tokens per second")
        times = (
            ("ttft_p99_ms", "time to first token", "#0072B2"),
            ("e2e_p99_ms", "whole answer", "#009E73"),
            ("rejected_p99_ms", "rejection", "#D55E00"),
        )
        for name, label, colour in times:
            right.plot(
                x, [getattr(level, name) for level in levels], "o-", color=colour, label=label
            )
        right.set_yscale("log")
        right.set_ylabel("p99, ms")
        for ax in (left, right):
            ax.set_xscale("log", base=2)
            ax.set_xticks(x, names)
            ax.minorticks_off()
            ax.set_xlabel("offered, as a multiple of the capacity")
            ax.legend(frameon=False)
        files = [stem.with_suffix(f".{kind}") for kind in ("png", "svg")]
        for path in files:
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(path, dpi=150, metadata=metadata)
        return files
