"""A worker goes on where another one was cut off: nothing is lost, repeated or changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from protocol.generation import Delta, Done, Event, Started

SAMPLING = {"max_tokens": 256, "seed": 3}


def deltas_of(events: Sequence[Event]) -> list[Delta]:
    return [event for event in events if isinstance(event, Delta)]


def left_behind(events: Sequence[Event], n: int = 1) -> list[dict[str, Any]]:
    """`resume` for what came in these events."""
    found: list[dict[str, Any]] = [{"ids": [], "ended": False} for _ in range(n)]
    for delta in deltas_of(events):
        found[delta.index]["ids"] += delta.ids
        found[delta.index]["ended"] = delta.finish_reason is not None
    return found


async def test_a_cut_at_every_position(worker: Any) -> None:
    whole = await worker.events(prompt="hello", sampling=SAMPLING)
    assert len(deltas_of(whole)) == 8
    for cut in range(2, len(whole) - 1):
        resume = left_behind(whole[:cut])
        rest = await worker.events(prompt="hello", sampling=SAMPLING, resume=resume)
        assert isinstance(rest[0], Started)
        assert rest[1:] == whole[cut:]


async def test_every_position_of_256_tokens_with_a_stop_string(start_worker: Any) -> None:
    worker = await start_worker(sim_tokens=256)
    words = "".join(d.text for d in deltas_of(await worker.events(prompt="x", sampling=SAMPLING)))
    sampling = {**SAMPLING, "stop": [" ".join(words.split()[200:202])]}
    whole = await worker.events(prompt="x", sampling=sampling)
    assert 190 < len(deltas_of(whole)) < 256
    for cut in range(2, len(whole) - 1):
        resume = left_behind(whole[:cut])
        rest = await worker.events(prompt="x", sampling=sampling, resume=resume)
        assert rest[1:] == whole[cut:], cut


async def test_choices_that_have_ended_are_counted_and_not_run_again(worker: Any) -> None:
    sampling = {**SAMPLING, "n": 3, "max_tokens": 6}
    whole = await worker.events(prompt="x", sampling=sampling)
    word = next(d.text for d in deltas_of(whole) if (d.index, d.pos) == (1, 2)).strip()
    sampling["stop"] = [word]
    whole = await worker.events(prompt="x", sampling=sampling)
    for cut in range(2, len(whole) - 1):
        resume = left_behind(whole[:cut], n=3)
        rest = await worker.events(prompt="x", sampling=sampling, resume=resume)
        for index in range(3):
            both = [d for d in deltas_of([*whole[:cut], *rest]) if d.index == index]
            assert both == [d for d in deltas_of(whole) if d.index == index]
        assert rest[-1] == whole[-1]
    assert isinstance(whole[-1], Done)
    assert whole[-1].completion_tokens < 18
    assert whole[-1].cached_tokens <= whole[-1].prompt_tokens


async def test_the_prompt_is_not_told_again(worker: Any) -> None:
    fields: dict[str, Any] = {"prompt": "hello", "echo": True}
    sampling = {**SAMPLING, "prompt_logprobs": 1, "logprobs": 2}
    whole = await worker.events(**fields, sampling=sampling)
    rest = await worker.events(**fields, sampling=sampling, resume=left_behind(whole[:5]))
    assert rest[1:] == whole[5:]


async def test_an_answer_that_lacks_its_end_only(worker: Any) -> None:
    whole = await worker.events(prompt="x", sampling=SAMPLING)
    rest = await worker.events(prompt="x", sampling=SAMPLING, resume=left_behind(whole))
    assert rest[1:] == whole[-1:]
    assert worker.runtime.load().running == 0


@pytest.mark.parametrize(
    ("sampling", "resume"),
    [
        (SAMPLING, [{"ids": [1]}, {"ids": []}]),  # more choices than there are
        ({"max_tokens": 9}, [{"ids": [1]}]),  # no seed
    ],
)
async def test_what_cannot_be_is_refused(
    worker: Any, sampling: dict[str, Any], resume: list[dict[str, Any]]
) -> None:
    body = {"request_id": "r", "model": "sim", "prompt": "x", "sampling": sampling}
    status, _ = await worker.post("/native/generate", {**body, "resume": resume})
    assert status == 400


@pytest.mark.parametrize("ids", [[10**9], [300] * 256])
async def test_tokens_that_cannot_be_are_refused(worker: Any, ids: list[int]) -> None:
    events = await worker.events(prompt="x", sampling=SAMPLING, resume=[{"ids": ids}])
    assert events[-1].code == "invalid_value"
    assert events[-1].param == "resume"
