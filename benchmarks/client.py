"""One streamed request and what a client sees of it: when each piece came, how many tokens.

It speaks OpenAI's API (`chat`, `completions`) and the native wire of our workers (`native`), so
that the same load can go through a gateway and past it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import orjson

from benchmarks.samples import Sample

__all__ = ["Endpoint", "Load", "Sample", "stream_once"]

Endpoint = Literal["chat", "completions", "native"]

PATHS: dict[Endpoint, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "native": "/native/generate",
}

WORDS = (
    "river stone harbour lantern copper meadow signal winter anchor thread mirror garden "
    "engine valley marble feather orchard compass bridge candle forest ribbon market tunnel "
    "island shadow kettle window violin saddle quarry needle basket summer pocket hammer "
    "ladder button castle desert pepper rocket silver timber walnut yellow zephyr blanket"
).split()


def words(count: int, rng: random.Random) -> str:
    """A text of so many words, about one token each."""
    return " ".join(rng.choice(WORDS) for _ in range(count))


@dataclass(frozen=True, slots=True)
class Load:
    """What each request asks for.

    Attributes:
        tokens: length of the answer; the end-of-text token does not end it.
        prompt_words: words of each prompt that no other one has.
        prefix: text before them, the same for all requests.
        extra_body: fields that this server needs.
    """

    model: str
    tokens: int
    prompt_words: int
    endpoint: Endpoint = "chat"
    temperature: float = 0.0
    prefix: str = ""
    extra_body: Mapping[str, object] = field(default_factory=dict)

    def body(self, rng: random.Random) -> dict[str, Any]:
        """A request whose prompt shares nothing but `prefix` with another one's."""
        prompt = f"{self.prefix} {words(self.prompt_words, rng)}".strip()
        messages = [{"role": "user", "content": prompt}]
        how = {"max_tokens": self.tokens, "temperature": self.temperature, "ignore_eos": True}
        if self.endpoint == "native":
            return {
                "request_id": f"bench-{rng.getrandbits(64):016x}",
                "model": self.model,
                "messages": messages,
                "conv_stops": True,
                "sampling": how,
                **self.extra_body,
            }
        return {
            "model": self.model,
            **how,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"messages": messages} if self.endpoint == "chat" else {"prompt": prompt}),
            **self.extra_body,
        }


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a run lasts at most.

    Attributes:
        count_tokens: how many tokens the text of an answer has that was cut off: the server's own
            count comes only at its end.
    """

    seconds: float
    count_tokens: Callable[[str], int]

    def from_now(self) -> Until:
        """The moment at which a run ends that begins now."""
        return Until(time.perf_counter() + self.seconds, self.count_tokens)


@dataclass(frozen=True, slots=True)
class Until:
    """When whatever still runs is cut off (`time.perf_counter`)."""

    at_s: float
    count_tokens: Callable[[str], int]

    def left_s(self) -> float:
        """Seconds until then."""
        return self.at_s - time.perf_counter()


@dataclass(slots=True)
class Heard:
    """What a stream has said so far."""

    tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    finish: str | None = None
    done: bool = False
    error: str | None = None


def hear_openai(line: bytes, heard: Heard) -> str:
    """Take in one line of server-sent events; returns the text that it brought."""
    if not line.startswith(b"data:"):
        return ""
    data = line[5:].strip()
    if data == b"[DONE]":
        heard.done = True
        return ""
    frame = orjson.loads(data)
    if frame.get("error"):
        heard.error = str(frame["error"])[:200]
    if usage := frame.get("usage"):
        heard.tokens = usage.get("completion_tokens")
        heard.prompt_tokens = usage.get("prompt_tokens")
        heard.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    if not (choices := frame.get("choices")):
        return ""
    choice = choices[0]
    heard.finish = choice.get("finish_reason") or heard.finish
    return choice.get("text") or (choice.get("delta") or {}).get("content") or ""


def hear_native(line: bytes, heard: Heard) -> str:
    """Take in one event of our own wire (`protocol/generation.py`); returns the text in it."""
    event = orjson.loads(line)
    if event["kind"] == "delta":
        heard.finish = event.get("finish_reason") or heard.finish
        return str(event.get("text", ""))
    if event["kind"] == "done":
        heard.done = True
        heard.tokens, heard.prompt_tokens = event["completion_tokens"], event["prompt_tokens"]
        heard.cached_tokens = event.get("cached_tokens", 0)
    elif event["kind"] == "failed":
        heard.error = f"{event['code']}: {event['message']}"[:200]
    return ""


_HEAR: dict[Endpoint, Callable[[bytes, Heard], str]] = {
    "chat": hear_openai,
    "completions": hear_openai,
    "native": hear_native,
}


async def stream_once(
    session: aiohttp.ClientSession,
    base_url: str,
    load: Load,
    rng: random.Random,
    *,
    due_s: float | None = None,
    until: Until | None = None,
    on_piece: Callable[[], object] | None = None,
) -> Sample:
    """Send one request and read its answer to the end.

    Args:
        due_s: when it should have been sent (`time.perf_counter`): its times count from then.
        until: when it is cut off.
        on_piece: called at each piece of text.
    """
    hear = _HEAR[load.endpoint]
    body = orjson.dumps(load.body(rng))
    headers = {"Content-Type": "application/json"}
    heard = Heard()
    pieces: list[float] = []
    texts: list[str] = []
    sent = time.perf_counter()
    limit = asyncio.timeout(until.left_s() if until else None)
    try:
        async with (
            limit,
            session.post(base_url + PATHS[load.endpoint], data=body, headers=headers) as answer,
        ):
            if answer.status != 200:
                heard.error = f"HTTP {answer.status}: {(await answer.text())[:200]}"
            else:
                async for line in answer.content:
                    if line.isspace():
                        continue
                    if text := hear(line, heard):
                        pieces.append(time.perf_counter())
                        texts.append(text)
                        if on_piece is not None:
                            on_piece()
                if not heard.done and heard.error is None:
                    heard.error = "the stream ended without its end mark"
                elif not pieces and heard.error is None:
                    heard.error = "the answer has no text"
    except (aiohttp.ClientError, OSError, ValueError, KeyError) as failure:
        if not limit.expired():
            heard.error = f"{type(failure).__name__}: {failure}"
    tokens = heard.tokens
    if tokens is None and until is not None and limit.expired():
        tokens = until.count_tokens("".join(texts))
    elif tokens is None:
        tokens = load.tokens if heard.finish == "length" else len(pieces)
    return Sample(
        started_s=sent if due_s is None else due_s,
        ended_s=time.perf_counter(),
        pieces_s=pieces,
        tokens=tokens,
        usage_known=heard.tokens is not None,
        error=heard.error,
        prompt_tokens=heard.prompt_tokens,
        cached_tokens=heard.cached_tokens,
        sent_s=sent,
        cut=limit.expired(),
    )
