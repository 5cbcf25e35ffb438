"""Numbers of one run, and their medians over repeats. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.arrivals import most_at_once
from benchmarks.samples import Interference, Sample


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile: always a value that was measured. NaN when there is none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True, slots=True)
class Run:
    """One repeat of one load. Latencies in milliseconds; NaN where nothing was measured.

    Attributes:
        clients: how many there were; in an open loop, the most requests under way at once.
        prompt_tokens, cached_tokens: of all answers that ended, as the server counted them; None
            when it does not say.
        seconds: from the first request's start to the last one's end.
        tpot_p50_ms: time per output token after the first, which compares servers that send
            several tokens in one piece with those that do not.
        e2e_*: from sending a request (open loop: from when it was due) to its end.
        late_p99_ms: how late requests were sent, in an open loop: large means that this program
            was too slow for the load.
        cpu_s: CPU time of the system's processes during the run; None when they are not known.
        client_cpu_s: the same of this program, which shares the cores.
        cut: answers that were cut off because the run had lasted long enough.
        details: what only this workload measures.
    """

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
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    tpot_p50_ms: float = math.nan
    e2e_p50_ms: float = math.nan
    e2e_p99_ms: float = math.nan
    requests_per_s: float = math.nan
    late_p99_ms: float = math.nan
    cpu_s: float | None = None
    client_cpu_s: float | None = None
    cut: int = 0
    details: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        clients: int | None,
        samples: Sequence[Sample],
        *,
        cpu_s: float | None = None,
        client_cpu_s: float | None = None,
        details: Mapping[str, float] | None = None,
    ) -> Run:
        """Fold the samples; failed requests count in `failed` and in nothing else.

        Args:
            clients: None counts the most requests that were under way at once.
        """
        good = [sample for sample in samples if sample.error is None]
        starts, ends = [s.started_s for s in samples], [s.ended_s for s in samples]
        seconds = max(ends) - min(starts) if samples else math.nan
        tokens = sum(sample.tokens for sample in good)
        ttft = [1000 * sample.ttft_s for sample in good if sample.pieces_s]
        gaps = [1000 * gap for sample in good for gap in sample.gaps_s]
        tpot = [1000 * sample.tpot_s for sample in good if sample.tpot_s is not None]
        e2e = [1000 * (sample.ended_s - sample.started_s) for sample in good if not sample.cut]
        late = [1000 * (s.sent_s - s.started_s) for s in samples if s.sent_s is not None]
        return cls(
            clients=(
                most_at_once((s.started_s, s.ended_s) for s in samples)
                if clients is None
                else clients
            ),
            requests=len(samples),
            failed=len(samples) - len(good),
            tokens=tokens,
            seconds=seconds,
            tokens_per_s=tokens / seconds,
            ttft_p50_ms=percentile(ttft, 0.5),
            ttft_p99_ms=percentile(ttft, 0.99),
            itl_p50_ms=percentile(gaps, 0.5),
            itl_p99_ms=percentile(gaps, 0.99),
            usage_known=all(sample.usage_known for sample in good if not sample.cut),
            first_error=next((sample.error for sample in samples if sample.error), None),
            prompt_tokens=_sum_known([sample.prompt_tokens for sample in good if not sample.cut]),
            cached_tokens=_sum_known([sample.cached_tokens for sample in good if not sample.cut]),
            tpot_p50_ms=percentile(tpot, 0.5),
            e2e_p50_ms=percentile(e2e, 0.5),
            e2e_p99_ms=percentile(e2e, 0.99),
            requests_per_s=sum(not sample.cut for sample in good) / seconds,
            late_p99_ms=percentile(late, 0.99),
            cpu_s=cpu_s,
            client_cpu_s=client_cpu_s,
            cut=sum(sample.cut for sample in good),
            details=details or {},
        )

    @property
    def prompt_tokens_each(self) -> float | None:
        """Tokens of a prompt, on average; None when the server does not say."""
        ended = self.requests - self.failed - self.cut
        return self.prompt_tokens / ended if self.prompt_tokens and ended else None

    @property
    def computed_tokens_each(self) -> float | None:
        """The same without those that a cache had."""
        if self.prompt_tokens_each is None or not self.prompt_tokens:
            return None
        return self.prompt_tokens_each * (1 - (self.cached_tokens or 0) / self.prompt_tokens)

    @property
    def cpu_ms_per_1000_tokens(self) -> float | None:
        """CPU milliseconds of the system for 1,000 tokens; None when they are not known."""
        return None if self.cpu_s is None or not self.tokens else 1e6 * self.cpu_s / self.tokens

    def as_json(self) -> dict[str, Any]:
        """All fields and what follows from them; JSON knows no NaN, so it is null there."""
        fields = asdict(self) | {
            "prompt_tokens_each": self.prompt_tokens_each,
            "cpu_ms_per_1000_tokens": self.cpu_ms_per_1000_tokens,
        }
        return {name: _no_nan(value) for name, value in fields.items()}


def _no_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _no_nan(one) for name, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _sum_known(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def interference(seen: Interference) -> dict[str, float]:
    """What long prompts do to short streams: gaps between pieces of the short ones, in ms.

    A gap counts as quiet when it lies between the moment from which all short streams decode and
    the sending of the long prompts, and as disturbed when it ends after that and until the last
    long prompt's first token.
    """
    spans = [
        (before, after)
        for sample in seen.short
        for before, after in zip(sample.pieces_s, sample.pieces_s[1:], strict=False)
    ]
    quiet = [1000 * (b - a) for a, b in spans if a >= seen.quiet_from_s and b <= seen.long_from_s]
    disturbed = [1000 * (b - a) for a, b in spans if seen.long_from_s < b <= seen.long_to_s]
    long_ttft = [1000 * sample.ttft_s for sample in seen.long if sample.error is None]
    quiet_p99, disturbed_p99 = percentile(quiet, 0.99), percentile(disturbed, 0.99)
    return {
        "quiet_itl_p50_ms": percentile(quiet, 0.5),
        "quiet_itl_p99_ms": quiet_p99,
        "disturbed_itl_p50_ms": percentile(disturbed, 0.5),
        "disturbed_itl_p99_ms": disturbed_p99,
        "itl_p99_ratio": disturbed_p99 / quiet_p99 if quiet else math.nan,
        "quiet_gaps": len(quiet),
        "disturbed_gaps": len(disturbed),
        "long_ttft_p50_ms": percentile(long_ttft, 0.5),
        "long_ttft_max_ms": percentile(long_ttft, 1.0),
    }


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure's median over the repeats, with the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """NaNs (nothing was measured in that repeat) are left out; all NaN gives NaN."""
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return cls(math.nan, math.nan, math.nan)
        return cls(statistics.median(known), min(known), max(known))

    def show(self) -> str:
        """The median, and below it the least and the greatest."""
        if math.isnan(self.median):
            return "–"
        return f"{self.median_text()}\n[dim]{short(self.low)}–{short(self.high)}[/dim]"

    def median_text(self) -> str:
        """The median alone."""
        return "–" if math.isnan(self.median) else short(self.median)

    def line(self) -> str:
        """The same in one line, for a page."""
        if math.isnan(self.median):
            return "–"
        return f"{short(self.median)} ({short(self.low)}–{short(self.high)})"


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


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
