"""The loops, against a small server over real sockets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from benchmarks.client import Limit, Load, stream_once
from benchmarks.loops import closed_loop, long_among_short, open_loop
from benchmarks.stats import Run, interference

LOAD = Load("m", tokens=3, prompt_words=4)
PIECE = b'data: {"choices": [{"delta": {"content": "two words "}}]}\n\n'
LAST = b'data: {"choices": [{"delta": {"content": "end"}, "finish_reason": "length"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 3, "prompt_tokens": 9}}\n\n'
DONE = b"data: [DONE]\n\n"

Answer = Callable[[web.Request, web.StreamResponse], Awaitable[None]]
Serve = Callable[[Answer], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server whose streams are written by a function; gives its URL."""
    runners: list[web.AppRunner] = []

    async def start(answer: Answer) -> str:
        async def handle(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await answer(request, response)
            return response

        app = web.Application()
        app.router.add_post("/v1/chat/completions", handle)
        runner = web.AppRunner(app)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def test_a_closed_loop_sends_the_next_request_when_the_last_has_ended(serve: Serve) -> None:
    now, most = 0, 0

    async def answer(request: web.Request, response: web.StreamResponse) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await response.write(PIECE)
        await asyncio.sleep(0.01)
        now -= 1
        await response.write(LAST + USAGE + DONE)

    samples = await closed_loop(await serve(answer), LOAD, 3, 4, "seed")
    assert len(samples) == 12
    assert most == 3
    assert all(sample.error is None and sample.tokens == 3 for sample in samples)
    assert {(sample.prompt_tokens, len(sample.pieces_s)) for sample in samples} == {(9, 2)}


async def test_an_open_loop_waits_for_no_answer(serve: Serve) -> None:
    """No answer comes before all requests have: a closed loop would wait for ever."""
    arrived, all_here = 0, asyncio.Event()

    async def answer(request: web.Request, response: web.StreamResponse) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 3:
            all_here.set()
        await all_here.wait()
        await response.write(LAST + USAGE + DONE)

    due = [0.0, 0.03, 0.05]
    samples = await open_loop(await serve(answer), LOAD, due, "seed")
    assert Run.of(None, samples).clients == 3
    starts = [sample.started_s - samples[0].started_s for sample in samples]
    assert starts == pytest.approx(due)  # exactly when they were due, however late they were sent
    assert all(
        sample.sent_s is not None and sample.sent_s >= sample.started_s for sample in samples
    )


async def test_a_limit_cuts_what_runs_and_counts_what_has_come(serve: Serve) -> None:
    hang = asyncio.Event()

    async def answer(request: web.Request, response: web.StreamResponse) -> None:
        await response.write(PIECE + PIECE)
        await hang.wait()

    url = await serve(answer)
    limit = Limit(0.5, lambda text: len(text.split()))
    (sample,) = await closed_loop(url, LOAD, 1, 5, "seed", limit=limit)
    hang.set()
    assert (sample.cut, sample.error, sample.tokens) == (True, None, 4)
    run = Run.of(1, [sample])
    assert (run.cut, run.failed, run.tokens, run.requests_per_s) == (1, 0, 4, 0)


async def test_an_answer_without_usage_that_ended_for_its_length_has_that_length(
    serve: Serve,
) -> None:
    async def answer(request: web.Request, response: web.StreamResponse) -> None:
        await response.write(PIECE + LAST + DONE)

    (sample,) = await closed_loop(await serve(answer), LOAD, 1, 1, "seed")
    assert (sample.tokens, len(sample.pieces_s), sample.usage_known) == (3, 2, False)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (PIECE, "without its end mark"),
        (DONE, "no text"),
        (b'data: {"error": {"message": "engine lost"}}\n\n' + DONE, "engine lost"),
        (b"data: {nonsense\n\n", "JSONDecodeError"),
    ],
)
async def test_an_answer_that_is_not_whole_is_a_failure(
    serve: Serve, written: bytes, reason: str
) -> None:
    async def answer(request: web.Request, response: web.StreamResponse) -> None:
        await response.write(written)

    (sample,) = await closed_loop(await serve(answer), LOAD, 1, 1, "seed")
    assert reason in (sample.error or "")


async def test_a_server_that_is_not_there_is_a_failure() -> None:
    async with aiohttp.ClientSession() as session:
        sample = await stream_once(session, "http://127.0.0.1:1", LOAD, random.Random(0))
    assert "Cannot connect" in (sample.error or "")


async def test_long_prompts_come_when_the_short_streams_have_had_their_quiet(serve: Serve) -> None:
    """The long answers begin only after short ones have gone on beside them."""
    beside = asyncio.Event()
    long_here, short_pieces = 0, 0

    async def answer(request: web.Request, response: web.StreamResponse) -> None:
        nonlocal long_here, short_pieces
        words = (await request.json())["messages"][0]["content"].split()
        if len(words) > 10:
            long_here += 1
            await beside.wait()
        else:
            for _ in range(20):
                await response.write(PIECE)
                await asyncio.sleep(0.002)
                short_pieces += long_here == 2
            if short_pieces:
                beside.set()
        await response.write(LAST + USAGE + DONE)

    seen = await long_among_short(
        await serve(answer),
        LOAD,
        Load("m", tokens=3, prompt_words=50),
        short_clients=3,
        long_requests=2,
        quiet_pieces=5,
        seed="seed",
    )
    found = interference(seen)
    assert len(seen.long) == 2
    assert not [sample for sample in seen.short + seen.long if sample.error]
    assert found["quiet_gaps"] >= 3 * 4
    assert found["disturbed_gaps"] > 0
    assert seen.quiet_from_s < seen.long_from_s < seen.long_to_s


async def test_a_failing_short_stream_does_not_keep_the_measurement_waiting(serve: Serve) -> None:
    async def answer(request: web.Request, response: web.StreamResponse) -> None:
        await response.write(b'data: {"error": {"message": "no"}}\n\n' + DONE)

    load = Load("m", tokens=3, prompt_words=50)
    seen = await long_among_short(
        await serve(answer), LOAD, load, short_clients=2, long_requests=1, quiet_pieces=5, seed="s"
    )
    assert len(seen.short) == 2
    assert all(sample.error for sample in seen.short + seen.long)
