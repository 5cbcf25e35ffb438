"""What can go wrong in a step, in the engine's own words, and how much a step may hold after it.

Pure. What torch raises becomes one of these at the border of `worker/model/`; anything else that
is raised is taken for the fault of a single request.
"""

from __future__ import annotations

from typing import Final

FAILED: Final = "the model failed on this request"
NO_MEMORY: Final = "the memory does not hold this request, even alone"

_EASE_TOKENS_S: Final = 1.0
_EASE_RUNNING_S: Final = 10.0


class OutOfMemory(Exception):
    """A step found no memory; less of it may."""


class EngineBroken(Exception):
    """This process can compute nothing any more, whoever asks: it must end and be started anew."""


class StepCaps:
    """How much a step may hold: what is configured, less for a while after it was too much.

    A step's memory grows with its tokens and, by their logits, with its sequences; keys and values
    have theirs from the start. So a prefill is cut into smaller pieces first, which costs nobody
    his place and is tried again with twice as many every second. Only a step of single tokens each
    of which finds memory alone gives up its youngest sequence; ten seconds pass before more run
    again. When it was one request that found no memory, both caps are what they were at once.

    Args:
        max_running, max_batch_tokens: as configured.

    Attributes:
        running, tokens: most sequences in the batch, and tokens in a step.
    """

    def __init__(self, max_running: int, max_batch_tokens: int) -> None:
        self._max_running, self._max_batch_tokens = max_running, max_batch_tokens
        self._running_s = self._tokens_s = 0.0
        self.reset()

    def reset(self) -> None:
        """Have steps hold what is configured."""
        self.running, self.tokens = self._max_running, self._max_batch_tokens

    def lower(self, now_s: float, *, running: int | None = None, tokens: int | None = None) -> None:
        """Have steps hold less than the one that failed."""
        if running is not None:
            self.running, self._running_s = max(1, running), now_s
        if tokens is not None:
            self.tokens, self._tokens_s = max(1, tokens), now_s

    def tokens_beside(self, num_decodes: int) -> int:
        """Most tokens in a step: no decode waits because of the cap, and a prefill goes on."""
        return min(max(self.tokens, num_decodes + 1), self._max_batch_tokens)

    def ease(self, now_s: float) -> None:
        """Let time pass."""
        if now_s - self._tokens_s >= _EASE_TOKENS_S:
            self.tokens, self._tokens_s = min(2 * self.tokens, self._max_batch_tokens), now_s
        if now_s - self._running_s >= _EASE_RUNNING_S:
            self.running, self._running_s = min(2 * self.running, self._max_running), now_s
