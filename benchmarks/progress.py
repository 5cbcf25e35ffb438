"""Tells how far a long measurement is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def left(seconds: float) -> str:
    """A time that is still to come, about."""
    if seconds < 90:
        return f"about {max(0, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"


class Steps:
    """Shows the steps of a measurement, and when it will have ended.

    The time left follows from the steps done so far; steps are not equally long, so it is rough.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._begin = clock()
        self._shown = -1
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, left="")

    def __enter__(self) -> Self:
        self._begin = self._clock()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, done: int, total: int, text: str) -> None:
        """So many steps of `total` are done; `text` is what happens now, or has happened.

        Lines are printed when a step is done, not again when the next one begins.
        """
        spent = self._clock() - self._begin
        rest = left(spent / done * (total - done)) if done else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=text, left=rest)
        elif done != self._shown:
            self._shown = done
            line = f"[{done}/{total}] {text}" + (f" ({rest})" if rest else "")
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
