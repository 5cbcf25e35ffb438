"""What clients have seen of their requests, as it was measured. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client saw it. Times in seconds, monotonic clock.

    Attributes:
        started_s: when it was sent, or was due where the load has a schedule.
        pieces_s: when each piece of text came.
        tokens: what the server counted; without usage, the length asked for where the answer
            ended for its length, else the number of pieces.
        error: why there is no full answer, or None.
        prompt_tokens, cached_tokens: as the server counted them, where it says so.
        sent_s: when it was sent, where that is not `started_s`.
        cut: the run's time was over before the answer was; what had come by then counts.
    """

    started_s: float
    ended_s: float
    pieces_s: list[float] = field(default_factory=list)
    tokens: int = 0
    usage_known: bool = True
    error: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    sent_s: float | None = None
    cut: bool = False

    @property
    def ttft_s(self) -> float:
        """Time to first token: from sending the request to the first piece of text."""
        return self.pieces_s[0] - self.started_s

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token times: from one piece of text to the next."""
        return [b - a for a, b in zip(self.pieces_s, self.pieces_s[1:], strict=False)]

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first, however many tokens a piece had."""
        if self.tokens < 2 or not self.pieces_s:
            return None
        return (self.pieces_s[-1] - self.pieces_s[0]) / (self.tokens - 1)


@dataclass(frozen=True, slots=True)
class Interference:
    """Short streams, and long prompts that come in their midst.

    Attributes:
        quiet_from_s: from here to `long_from_s` all short streams decode and nothing else runs.
        long_from_s, long_to_s: from the sending of the long prompts to the last one's first token.
    """

    short: list[Sample]
    long: list[Sample]
    quiet_from_s: float
    long_from_s: float
    long_to_s: float
