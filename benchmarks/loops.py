"""The ways to send a load: closed loop, open loop, and short streams with long prompts among them.

Each returns what its clients saw. Nothing is judged here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import aiohttp

from benchmarks.client import Limit, Load, stream_once
from benchmarks.samples import Interference, Sample

Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run in an event loop of its own: uvloop's where there is one, so that the client, which
    shares the cores with what it measures, takes less of them."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)


def open_session(api_key: str = "") -> aiohttp.ClientSession:
    """A client without a limit of connections; needs a running loop."""
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_read=600),
    )


async def closed_loop(
    base_url: str,
    load: Load,
    clients: int,
    requests_per_client: int,
    seed: str,
    api_key: str = "",
    *,
    limit: Limit | None = None,
) -> list[Sample]:
    """All clients at once, each with its requests one after the other.

    Args:
        limit: after so long no request is begun and those that run are cut off.
    """
    async with open_session(api_key) as session:
        until = limit.from_now() if limit else None

        async def client(number: int) -> list[Sample]:
            rng = random.Random(f"{seed}/{number}")
            samples: list[Sample] = []
            while len(samples) < requests_per_client and (until is None or until.left_s() > 0):
                samples.append(await stream_once(session, base_url, load, rng, until=until))
            return samples

        samples = await asyncio.gather(*(client(number) for number in range(clients)))
    return [sample for one in samples for sample in one]


async def open_loop(
    base_url: str, load: Load, due_s: Sequence[float], seed: str, api_key: str = ""
) -> list[Sample]:
    """A request at each of the times `due_s`, whatever has become of those before.

    Latencies count from when a request was due: one that is sent late, because this program was
    busy, is not faster for it.
    """
    async with open_session(api_key) as session:
        begin = time.perf_counter()

        async def one(number: int, due: float) -> Sample:
            rng = random.Random(f"{seed}/{number}")
            return await stream_once(session, base_url, load, rng, due_s=due)

        sent = []
        for number, after in enumerate(due_s):
            await asyncio.sleep(begin + after - time.perf_counter())
            sent.append(asyncio.create_task(one(number, begin + after)))
        return list(await asyncio.gather(*sent))


async def long_among_short(
    base_url: str,
    short: Load,
    long: Load,
    *,
    short_clients: int,
    long_requests: int,
    quiet_pieces: int,
    seed: str,
    api_key: str = "",
) -> Interference:
    """`short_clients` streams, one request after another; once each of them has had
    `quiet_pieces` pieces of undisturbed decoding, `long_requests` prompts at once; the short ones
    go on until each long one has its first token, and then end what they have begun."""
    async with open_session(api_key) as session:
        over = asyncio.Event()
        all_decode, quiet = asyncio.Event(), asyncio.Event()
        quiet_from = 0.0
        heard = [0] * short_clients  # pieces of each, counted anew when all of them decode

        def on_short(number: int) -> None:
            nonlocal quiet_from
            heard[number] += 1
            if not all_decode.is_set() and min(heard) > 0:
                all_decode.set()
                quiet_from = time.perf_counter()
                heard[:] = [0] * short_clients
            elif all_decode.is_set() and min(heard) >= quiet_pieces:
                quiet.set()

        async def short_client(number: int) -> list[Sample]:
            rng = random.Random(f"{seed}/short/{number}")
            samples: list[Sample] = []
            while not over.is_set():
                sample = await stream_once(
                    session, base_url, short, rng, on_piece=lambda: on_short(number)
                )
                samples.append(sample)
                if sample.error is not None:
                    quiet.set()  # a measurement that has failed must end
                    break
            return samples

        async def long_client(number: int) -> Sample:
            rng = random.Random(f"{seed}/long/{number}")
            return await stream_once(session, base_url, long, rng)

        async def all_long() -> tuple[float, list[Sample]]:
            await quiet.wait()
            begin = time.perf_counter()
            try:
                return begin, list(
                    await asyncio.gather(*(long_client(n) for n in range(long_requests)))
                )
            finally:
                over.set()

        shorts, (long_from, longs) = await asyncio.gather(
            asyncio.gather(*(short_client(n) for n in range(short_clients))), all_long()
        )
    firsts = [sample.pieces_s[0] for sample in longs if sample.pieces_s]
    return Interference(
        short=[sample for one in shorts for sample in one],
        long=longs,
        quiet_from_s=quiet_from,
        long_from_s=long_from,
        long_to_s=max(firsts, default=long_from),
    )
