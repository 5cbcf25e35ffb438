"""Numbers of one run, and their medians over repeats. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.client import Sample


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile: always a value that was measured. NaN when there is none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True, slots=True)
class Run:
    """One repeat at one number of clients. Latencies in milliseconds."""

    clients: int
    requests: int
    failed: int
    tokens: int
    seconds: float
    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    usage_known: bool
    first_error: str | None

    @classmethod
    def of(cls, clients: int, samples: Sequence[Sample]) -> Run:
        """Fold the samples; failed requests count in `failed` and in nothing else."""
        good = [sample for sample in samples if sample.error is None]
        seconds = max(s.ended_s for s in samples) - min(s.started_s for s in samples)
        tokens = sum(sample.tokens for sample in good)
        ttft = [1000 * sample.ttft_s for sample in good]
        gaps = [1000 * gap for sample in good for gap in sample.gaps_s]
        return cls(
            clients=clients,
            requests=len(samples),
            failed=len(samples) - len(good),
            tokens=tokens,
            seconds=seconds,
            tokens_per_s=tokens / seconds,
            ttft_p50_ms=percentile(ttft, 0.5),
            ttft_p99_ms=percentile(ttft, 0.99),
            itl_p50_ms=percentile(gaps, 0.5),
            itl_p99_ms=percentile(gaps, 0.99),
            usage_known=all(sample.usage_known for sample in good),
            first_error=next((sample.error for sample in samples if sample.error), None),
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure's median over the repeats, with the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def show(self) -> str:
        """The median, and below it the least and the greatest."""
        if math.isnan(self.median):
            return "–"
        return f"{_short(self.median)}\n[dim]{_short(self.low)}–{_short(self.high)}[/dim]"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


FIGURES = ("tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms")


def summarise(runs: Sequence[Run]) -> dict[int, dict[str, Spread]]:
    """Number of clients -> figure -> its spread over the repeats."""
    levels = sorted({run.clients for run in runs})
    return {
        clients: {
            name: Spread.of([getattr(run, name) for run in runs if run.clients == clients])
            for name in FIGURES
        }
        for clients in levels
    }
