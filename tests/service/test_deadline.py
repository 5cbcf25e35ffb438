"""A deadline calls at its time, once, and bothers the loop only when one may be due."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from trireme.service.deadline import Deadline


class Timer:
    def __init__(self, due_s: float, call: Callable[[], None]) -> None:
        self.due_s, self.call = due_s, call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """A loop's clock and its timers, all that were ever made."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now_s + delay_s, call))
        return self.timers[-1]

    @property
    def waiting(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.cancelled]

    def go_to(self, now_s: float) -> None:
        while self.waiting and (first := min(self.waiting, key=lambda one: one.due_s)):
            if first.due_s > now_s:
                break
            self.now_s = first.due_s
            first.cancelled = True
            first.call()
        self.now_s = now_s


class Bench:
    def __init__(self) -> None:
        self.loop: Any = Loop()
        self.calls: list[float] = []
        self.deadline = Deadline(self.loop, lambda: self.calls.append(self.loop.now_s))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_it_calls_once_when_the_time_is_over(bench: Bench) -> None:
    bench.deadline.set(5)
    assert bench.deadline.at_s == 105
    bench.loop.go_to(104.9)
    assert bench.calls == []
    bench.loop.go_to(300)
    assert bench.calls == [105]
    assert bench.deadline.at_s is None
    assert not bench.loop.waiting


def test_one_that_is_cleared_does_not(bench: Bench) -> None:
    bench.deadline.set(5)
    bench.deadline.clear()
    bench.loop.go_to(300)
    assert bench.calls == []
    assert not bench.loop.waiting


def test_one_that_is_set_anew_calls_at_the_later_time(bench: Bench) -> None:
    bench.deadline.set(5)
    bench.loop.go_to(103)
    bench.deadline.set(5)
    bench.loop.go_to(300)
    assert bench.calls == [108]


def test_one_that_is_set_anew_calls_at_the_earlier_time(bench: Bench) -> None:
    bench.deadline.set(50)
    bench.deadline.set(5)
    assert len(bench.loop.waiting) == 1
    bench.loop.go_to(300)
    assert bench.calls == [105]


def test_it_serves_again_after_it_has_called(bench: Bench) -> None:
    bench.deadline.set(5)
    bench.loop.go_to(200)
    bench.deadline.set(5)
    bench.loop.go_to(300)
    assert bench.calls == [105, 205]


def test_a_thousand_requests_in_its_time_take_one_timer(bench: Bench) -> None:
    for _ in range(1000):
        bench.deadline.set(60)
        bench.loop.go_to(bench.loop.now_s + 1 / 64)
        bench.deadline.clear()
    assert len(bench.loop.timers) == 1
    bench.deadline.set(60)
    bench.loop.go_to(500)
    assert bench.calls == [100 + 1000 / 64 + 60]
    assert len(bench.loop.timers) == 2


def test_one_that_has_ended_leaves_nothing_behind(bench: Bench) -> None:
    bench.deadline.set(5)
    bench.deadline.end()
    assert bench.deadline.at_s is None
    assert not bench.loop.waiting
    bench.loop.go_to(300)
    assert bench.calls == []


def test_one_that_has_ended_keeps_nobody_alive() -> None:
    class Owner:
        def __init__(self) -> None:
            self.deadline = Deadline(Loop(), self.late)  # type: ignore[arg-type]  # all it needs

        def late(self) -> None:
            raise AssertionError

    owner = Owner()
    gone = weakref.ref(owner)
    gc.disable()
    try:
        owner.deadline.end()
        del owner
        assert gone() is None
    finally:
        gc.enable()


async def test_it_keeps_the_time_of_a_real_loop() -> None:
    loop, called = asyncio.get_running_loop(), asyncio.Event()
    deadline = Deadline(loop, called.set)
    deadline.set(0.05)
    await asyncio.sleep(0.03)
    deadline.set(0.05)
    began = loop.time()
    async with asyncio.timeout(5):
        await called.wait()
    assert loop.time() - began > 0.045
