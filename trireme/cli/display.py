"""What `trireme up` shows: a progress line for each tier on a terminal, else a line a change."""

from __future__ import annotations

import re
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

Mood: TypeAlias = Literal["good", "bad", "plain"]

_MARKS: Final[dict[Mood, tuple[str, str]]] = {
    "good": ("✓", "bold green"),
    "bad": ("✗", "bold red"),
    "plain": ("•", "cyan"),
}
_PERCENT: Final = re.compile(r"\s*\b(\d{1,3}(?:\.\d+)?)\s*%")
_NAME_WIDTH: Final = 11


def split_percent(reason: str) -> tuple[str, float | None]:
    """A reason such as `loading weights 40%` as text and 0..100, None without a number."""
    found = _PERCENT.search(reason)
    if found is None:
        return reason, None
    return _PERCENT.sub("", reason, count=1).strip(), min(100.0, float(found.group(1)))


class Display:
    """Status lines; a context manager, so that a terminal is left as it was.

    Args:
        console: where to; progress bars appear only on a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, str] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.fields[name]:<11}", markup=False),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[percent]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self._progress.stop()

    def waiting(self, name: str, reason: str) -> None:
        """A tier is not ready; `reason` says what it does, with a percentage if it knows one."""
        text, percent = split_percent(reason)
        if self.console.is_terminal:
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(text, name=name, percent="")
            self._progress.update(
                self._tasks[name],
                description=text,
                total=None if percent is None else 100,
                completed=percent or 0,
                percent="" if percent is None else f"{percent:.0f}%",
            )
        elif self._shown.get(name) != text:
            self.line(name, reason)
        self._shown[name] = text

    def line(self, name: str, text: str, mood: Mood = "plain") -> None:
        """A line that stays; a tier that is no longer waited for loses its progress line."""
        if mood != "plain" and name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))
            self._progress.refresh()
        mark, style = _MARKS[mood]
        self.console.print(
            Text.assemble((mark, style), " ", (f"{name:<{_NAME_WIDTH}}", "bold"), " ", text),
            soft_wrap=True,
        )

    def wait_no_more(self) -> None:
        """Take all progress lines away: nothing is waited for any longer."""
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks.clear()
        if self.console.is_terminal:
            self._progress.refresh()

    def output(self, name: str, lines: list[str]) -> None:
        """Lines that a tier wrote, each with its name in front."""
        for line in lines:
            self.console.print(Text.assemble((f"{name} | ", "dim"), line), soft_wrap=True)
