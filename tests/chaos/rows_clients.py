"""Clients that leave, and clients that stop to read."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import psutil

from tests.chaos.fleet import Program, until
from tests.chaos.scene import Promise, Row, Scene

FREE_S = 0.3
TOKENS_MORE = 2
BUFFERED_KIB = 256
STUCK_S = 30.0
OTHER_GROWTH_KIB = 8 * 1024
"""What a process that serves grows by anyhow in that time."""
FILL_S = 12.0
"""What the kernel buffers for a connection, some megabytes, is full by then."""
RUNNING = "vllm:num_requests_running"
KV = "vllm:kv_cache_usage_perc"


def _request(gateway: Program, *, stream: bool, **fields: object) -> bytes:
    body = json.dumps(
        {
            "model": "sim",
            "messages": [{"role": "user", "content": f"leaver {random.random()}"}],
            "max_tokens": 20_000,
            "ignore_eos": True,
            "stream": stream,
            **fields,
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: chaos\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def disconnects(scene: Scene) -> None:
    """One client at a time, so that each one's slot can be watched becoming free."""
    fleet = scene.fleet
    gateway = fleet.gateways[0]
    moments: dict[str, tuple[bool, Callable[[], float]]] = {
        "before the first token": (True, lambda: random.uniform(0.05, 0.15)),
        "in mid-stream": (True, lambda: random.uniform(0.3, 0.8)),
        "not streamed": (False, lambda: random.uniform(0.05, 0.6)),
    }
    for what, (stream, stays) in moments.items():
        times: list[float] = []
        more: list[float] = []
        for _ in range(scene.scale.disconnects):
            seconds, tokens = await _leave(scene, gateway, stream, stays())
            times.append(seconds)
            more.append(tokens)
        times.sort()
        scene.measured(what, times[min(len(times) - 1, round(0.99 * len(times)))], FREE_S)
        scene.note(f"{what}: free after {1000 * statistics.median(times):.0f} ms in the median")
        most = max(more)
        scene.expect(most <= TOKENS_MORE, f"{what}: {most:.0f} tokens more, not {TOKENS_MORE}")


async def _leave(
    scene: Scene, gateway: Program, stream: bool, after_s: float
) -> tuple[float, float]:
    """(seconds until the slot is free, tokens that were still made)."""
    fleet = scene.fleet
    where = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(_request(gateway, stream=stream))
    await asyncio.sleep(after_s)
    [worker] = [one for one in fleet.workers if await fleet.metric([one], RUNNING)]
    made = await fleet.metric([worker], "vllm:generation_tokens_total")
    writer.transport.abort()
    left_s = time.monotonic()
    del reader

    async def free() -> bool:
        return not await fleet.metric([worker], RUNNING, KV)

    await until(free, 10.0, "a slot is not free", every_s=0.005)
    seconds = time.monotonic() - left_s
    return seconds, await fleet.metric([worker], "vllm:generation_tokens_total") - made


async def readers_that_stop(scene: Scene) -> None:
    """Fat streams that nobody reads; the others' tokens must come as before."""
    fleet, load = scene.fleet, scene.load
    gateway = fleet.gateways[0]
    process = psutil.Process(gateway.pid)
    load.tally.gaps.clear()
    await asyncio.sleep(5 * scene.scale.warm_s)
    quiet = statistics.median(load.tally.gaps)
    memory = process.memory_info().rss
    sockets = [_stuck(gateway) for _ in range(scene.scale.stopped_readers)]
    try:
        await scene.strike(lambda: None)
        await asyncio.sleep(FILL_S)
        load.tally.gaps.clear()
        await asyncio.sleep(5 * scene.scale.warm_s)
        disturbed = statistics.median(load.tally.gaps)
        grown_kib = (process.memory_info().rss - memory) / 1024
        share = disturbed / quiet - 1
        scene.note(
            f"others' time between tokens {1000 * quiet:.2f} ms, then {1000 * disturbed:.2f} ms "
            f"({share:+.1%}); the gateway {grown_kib:+.0f} KiB for {len(sockets)} readers"
        )
        scene.expect(share < 0.05 * scene.scale.slack, f"others are slower by {share:.1%}")
        most_kib = len(sockets) * BUFFERED_KIB + OTHER_GROWTH_KIB
        scene.expect(grown_kib < most_kib, f"the gateway grew by {grown_kib:.0f} KiB")
        await load.pause()

        async def given_up() -> bool:
            return not await fleet.metric([gateway], "trireme_gateway_requests_in_flight")

        await scene.when("given up", given_up, FILL_S + STUCK_S + 3.0)
    finally:
        for one in sockets:
            one.close()


def _stuck(gateway: Program) -> socket.socket:
    """A client with a small window that asks for much and reads nothing."""
    where = urlsplit(gateway.url)
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect((where.hostname, where.port))
    made.sendall(_request(gateway, stream=True, logprobs=True, top_logprobs=20, n=4))
    return made


ROWS = [
    Row(
        "client-leaves",
        "clients disconnect",
        Promise("slot and KV free < 300 ms; at most 2 tokens more"),
        disconnects,
        loaded=False,
    ),
    Row(
        "client-stops",
        "clients stop to read",
        Promise("≤ 256 KiB buffered, given up after 30 s; others + < 5 %"),
        readers_that_stop,
    ),
]
