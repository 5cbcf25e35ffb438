"""The simulated OpenAI backend, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from benchmarks.peers.simulated_backend import Answers, Connection, Pace

ASK = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@contextlib.asynccontextmanager
async def backend(pace: Pace) -> AsyncIterator[str]:
    """Its URL while it listens."""
    answers = Answers("m")
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(answers, pace), "127.0.0.1", 0
    )
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def ask(pace: Pace, *bodies: dict[str, Any]) -> list[list[bytes]]:
    """The lines of each answer, all on one connection."""
    one = aiohttp.TCPConnector(limit=1)
    found = []
    async with (
        backend(pace) as url,
        aiohttp.ClientSession(connector=one, raise_for_status=True) as session,
    ):
        for body in bodies:
            async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                found.append((await answer.read()).splitlines())
    return found


def frames(lines: list[bytes]) -> list[dict[str, Any]]:
    """The JSON of each event; the last one must be the end mark."""
    events = [line.removeprefix(b"data: ") for line in lines if line]
    assert events.pop() == b"[DONE]"
    return [json.loads(event) for event in events]


async def test_streamed_and_whole_answers_say_the_same_and_are_valid() -> None:
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    streamed, whole, again = await ask(
        Pace(), ASK | usage | {"max_tokens": 11}, ASK | {"max_tokens": 11}, ASK | {"max_tokens": 11}
    )
    completion = ChatCompletion.model_validate(json.loads(whole[0]))
    assert whole == again
    chunks = [ChatCompletionChunk.model_validate(frame) for frame in frames(streamed)]
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert len([piece for piece in pieces if piece]) == 11
    assert "".join(piece or "" for piece in pieces) == completion.choices[0].message.content
    assert chunks[-1].usage is not None
    assert completion.usage is not None
    assert chunks[-1].usage.completion_tokens == completion.usage.completion_tokens == 11


async def test_a_request_that_names_no_length_gets_the_servers() -> None:
    (lines,) = await ask(Pace(tokens=3), ASK | {"stream": True})
    texts = [frame["choices"][0]["delta"].get("content") for frame in frames(lines)]
    assert texts == [None, " river", " stone", " harbour", None], "and no usage unless asked"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_pace_is_kept(stream: bool) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    (lines,) = await ask(Pace(5, ttft_s=0.05, itl_s=0.02), ASK | {"stream": stream})
    assert loop.time() - began >= 0.05 + 4 * 0.02
    if stream:
        assert len(frames(lines)) == 1 + 5 + 1


async def test_other_routes_say_what_a_router_asks() -> None:
    async with backend(Pace()) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/v1/models") as answer:
            assert [card["id"] for card in (await answer.json())["data"]] == ["m"]
        async with session.get(f"{url}/health") as answer:
            assert answer.status == 200


async def test_what_is_no_http_ends_the_connection() -> None:
    async with backend(Pace()) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"\x16\x03\x01 no http\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
