"""What can go wrong in a step, in the engine's own words, and how much a step may hold after it.

Pure. What torch raises becomes one of these at the border of `worker/model/`; anything else that
is raised is taken for the fault of a single request.
"""

from __future__ import annotations

from typing import Final

FAILED: Final = "the model failed on this request"
NO_MEMORY: Final = "the memory does not hold this request, even alone"

_EASE_S: Final = 10.0


class OutOfMemory(Exception):
    """A step found no memory; less of it may."""


class EngineBroken(Exception):
    """This process can compute nothing any more, whoever asks: it must end and be started anew."""


class StepCaps:
    """How much a step may hold: what is configured, less for a while after it was too much.

    A step's memory grows with its tokens and, by their logits, with its sequences; keys and values
    have theirs from the start. So a prefill is cut into smaller pieces first, which costs nobody
    his place, and only a step of single tokens gives up its youngest sequence. Every ten seconds
    without such a fault both caps double.

    Args:
        max_running, max_batch_tokens: as configured.

    Attributes:
        running, tokens: most sequences in the batch, and tokens in a step.
    """

    def __init__(self, max_running: int, max_batch_tokens: int) -> None:
        self._max_running, self._max_batch_tokens = max_running, max_batch_tokens
        self.running, self.tokens = max_running, max_batch_tokens
        self._changed_s = 0.0

    def lower(self, now_s: float, *, running: int | None = None, tokens: int | None = None) -> None:
        """Have steps hold less than the one that failed."""
        self.running = max(1, running if running is not None else self.running)
        self.tokens = max(1, tokens if tokens is not None else self.tokens)
        self._changed_s = now_s

    def ease(self, now_s: float) -> None:
        """Let time pass."""
        if now_s - self._changed_s >= _EASE_S:
            self.running = min(2 * self.running, self._max_running)
            self.tokens = min(2 * self.tokens, self._max_batch_tokens)
            self._changed_s = now_s
