"""What an engine gives to the one reader of a job. Lives in one event loop."""

from __future__ import annotations

import asyncio
from typing import Final, TypeAlias

from worker.engine.protocol import Job, PromptOutput, StepOutput

Output: TypeAlias = PromptOutput | StepOutput

HELD_OUTPUTS: Final = 128
"""So many are given even when they could be held back longer."""


class Outputs:
    """Filled by the engine, taken by the reader: all that came meanwhile at once.

    Args:
        job: its deadline fails the reader with a TimeoutError.
        hold_s: seconds that outputs may be held back, so that the reader wakes up less often. The
            first output and the last one of a choice are never held.
    """

    def __init__(self, job: Job, hold_s: float = 0.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._hold_s = hold_s
        self._outputs: list[Output] = []
        self._error: Exception | None = None
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None
        self._due = True  # whether what is there may be taken; also for the first output
        self._release: asyncio.TimerHandle | None = None
        self._deadline = (
            None
            if job.deadline_s is None
            else self._loop.call_later(job.deadline_s, self.fail, TimeoutError())
        )

    def __len__(self) -> int:
        """Outputs that were not taken yet."""
        return len(self._outputs)

    def put(self, output: Output) -> None:
        """Give an output."""
        self._outputs.append(output)
        if not self._due:
            ends = isinstance(output, PromptOutput) or output.finish is not None
            self._due = ends or len(self._outputs) >= HELD_OUTPUTS
        if self._due:
            self._wake()

    def fail(self, error: Exception) -> None:
        """End the job with an error, behind what was given."""
        self._error = self._error or error
        self._release_now()

    def end(self) -> None:
        """Nothing follows what was given."""
        self._ended = True
        self._release_now()

    async def take(self) -> list[Output]:
        """What was given since the last call, at least one output; empty behind the end.

        Raises:
            TimeoutError: the job's deadline passed. Exception: what `fail` was told.
        """
        while not (self._outputs and self._due):
            if self._error is not None and not self._outputs:
                raise self._error
            if self._ended:
                return []
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        taken, self._outputs = self._outputs, []
        if self._hold_s:
            self._due = False
            self._release = self._loop.call_later(self._hold_s, self._release_now)
        return taken

    def close(self) -> None:
        """Stop the clocks; the reader has gone."""
        for timer in (self._deadline, self._release):
            if timer is not None:
                timer.cancel()

    def _release_now(self) -> None:
        self._due = True
        self._wake()

    def _wake(self) -> None:
        """Whoever waits looks again; it may find that the time has not come."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
