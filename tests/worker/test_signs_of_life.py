"""Where nothing may be told before the end, a worker says from time to time that it lives."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from protocol.generation import Delta, Done
from worker import native, service
from worker.engine.protocol import Job, StepOutput


def alive(generated: int) -> Delta:
    return Delta(0, 0, [], "", generated=generated)


async def test_best_of_shows_that_it_goes_on(
    start_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_ALIVE_S", 0.02)
    worker = await start_worker(sim_tokens=20, sim_itl_ms=10)
    _started, *events, done = await worker.events(prompt="x", sampling={"best_of": 2})
    first = next(at for at, event in enumerate(events) if event.ids)
    assert events[:first]
    told = [event.generated for event in events[:first]]
    assert events[:first] == [alive(count) for count in told]
    assert told == sorted(told)
    assert 0 < told[-1] <= 40
    assert all(event.generated is None for event in events[first:])
    assert done == Done(prompt_tokens=1, completion_tokens=40)


async def searching(job: Job, hold_s: float) -> AsyncGenerator[list[StepOutput], None]:
    """What an engine gives for a search: nothing to tell for some rounds, then all."""
    assert job.params.beam_width == 2
    for _ in range(5):
        yield [StepOutput(0, 0, [], cached_tokens=3)]
    yield [StepOutput(0, 0, [104, 105], finish="length", cached_tokens=3)]


@pytest.mark.parametrize(("alive_s", "signs"), [(0.0, 5), (1000.0, 0)])
async def test_a_search_shows_that_it_goes_on(
    worker: Any, alive_s: float, signs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_ALIVE_S", alive_s)
    ready = worker.runtime.ready
    monkeypatch.setattr(ready.engine, "submit", searching)
    able = replace(ready, info=replace(ready.info, beams=True))
    monkeypatch.setattr(worker.runtime, "_ready", able)
    sampling = {"use_beam_search": True, "best_of": 2}
    _started, *events = await worker.events(prompt="abcd", sampling=sampling)
    answer = Delta(0, 0, [104, 105], "hi", finish_reason="length")
    told = [alive(1 + step) for step in range(signs)]
    assert events == [*told, answer, Done(4, 2, cached_tokens=3)]


async def test_a_stream_with_nothing_to_tell_shows_that_it_lives(
    start_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty lines, which are no events: a gateway tells a slow worker from a cut cable."""
    monkeypatch.setattr(native, "NATIVE_PING_S", 0.5)
    worker = await start_worker(sim_tokens=1, sim_ttft_ms=1600)
    body = {"request_id": "r", "model": "sim", "prompt": "x"}
    async with worker.http.post(worker.url + "/native/generate", json=body) as answer:
        _started, *between, _delta, _done = [line async for line in answer.content]
    assert between == [b"\n"]
