from __future__ import annotations

from worker.engine.protocol import EngineLoad
from worker.runtime import StallWatch


def test_an_idle_engine_never_stalls() -> None:
    watch = StallWatch(10)
    assert not watch.stalled(EngineLoad(step=5, busy=False), 0)
    assert not watch.stalled(EngineLoad(step=5, busy=False), 1000)


def test_a_busy_engine_without_a_step_stalls_after_the_limit() -> None:
    watch = StallWatch(10)
    assert not watch.stalled(EngineLoad(step=5, busy=True), 0)
    assert not watch.stalled(EngineLoad(step=5, busy=True), 10)
    assert watch.stalled(EngineLoad(step=5, busy=True), 10.1)


def test_a_step_ends_the_stall() -> None:
    watch = StallWatch(10)
    watch.stalled(EngineLoad(step=5, busy=True), 0)
    assert watch.stalled(EngineLoad(step=5, busy=True), 20)
    assert not watch.stalled(EngineLoad(step=6, busy=True), 21)


def test_the_wait_begins_when_work_comes() -> None:
    watch = StallWatch(10)
    watch.stalled(EngineLoad(step=5, busy=False), 0)
    assert not watch.stalled(EngineLoad(step=5, busy=True), 100)
