"""What `trireme up` shows on a terminal and elsewhere."""

from __future__ import annotations

import io
import time

from rich.console import Console

from trireme.cli.display import Display


def shown_by(terminal: bool) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    return Display(Console(file=out, force_terminal=terminal, width=100, color_system=None)), out


def test_without_a_terminal_each_change_is_a_line_but_not_each_percent() -> None:
    display, out = shown_by(terminal=False)
    with display:
        for percent in range(0, 101, 10):
            display.waiting("worker", f"loading weights {percent}%")
        display.waiting("worker", "warming up")
        display.line("worker", "ready at http://x", "good")
        display.output("worker", ["[bold]as it is[/bold]"])
    assert [line.rstrip() for line in out.getvalue().splitlines()] == [
        "• worker      loading weights 0%",
        "• worker      warming up",
        "✓ worker      ready at http://x",
        "worker | [bold]as it is[/bold]",
    ]


def test_on_a_terminal_progress_is_a_bar_that_goes_when_it_is_done() -> None:
    display, out = shown_by(terminal=True)
    with display:
        display.waiting("worker", "loading [weights] 40%")
        deadline = time.monotonic() + 5
        while "40%" not in out.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "loading [weights]" in out.getvalue()
        display.line("worker", "ready", "good")
        out.truncate(0)
        display.console.print("later")
        assert "loading" not in out.getvalue()
        display.waiting("gateway", "starting")
        display.wait_no_more()
        out.truncate(0)
        display.console.print("end")
        assert "starting" not in out.getvalue()
