"""One streamed request and what a client sees of it: when each piece came, how many tokens."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import orjson

Endpoint = Literal["chat", "completions"]

PATHS: dict[Endpoint, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}

WORDS = (
    "river stone harbour lantern copper meadow signal winter anchor thread mirror garden "
    "engine valley marble feather orchard compass bridge candle forest ribbon market tunnel "
    "island shadow kettle window violin saddle quarry needle basket summer pocket hammer "
    "ladder button castle desert pepper rocket silver timber walnut yellow zephyr blanket"
).split()


@dataclass(frozen=True, slots=True)
class Load:
    """What each request asks for."""

    model: str
    tokens: int
    prompt_words: int
    endpoint: Endpoint = "chat"
    temperature: float = 0.0

    def body(self, rng: random.Random) -> dict[str, Any]:
        """A request whose prompt shares no prefix with another one's, so that no cache helps."""
        prompt = " ".join(rng.choice(WORDS) for _ in range(self.prompt_words))
        return {
            "model": self.model,
            "max_tokens": self.tokens,
            "temperature": self.temperature,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **(
                {"messages": [{"role": "user", "content": prompt}]}
                if self.endpoint == "chat"
                else {"prompt": prompt}
            ),
        }


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client saw it. Times in seconds, monotonic clock.

    Attributes:
        pieces_s: when each piece of text came.
        tokens: what the server counted, or the number of pieces when it sent no usage.
        error: why there is no full answer, or None.
    """

    started_s: float
    ended_s: float
    pieces_s: list[float] = field(default_factory=list)
    tokens: int = 0
    usage_known: bool = True
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        """Time to first token: from sending the request to the first piece of text."""
        return self.pieces_s[0] - self.started_s

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token times: from one piece of text to the next."""
        return [b - a for a, b in zip(self.pieces_s, self.pieces_s[1:], strict=False)]


async def stream_once(
    session: aiohttp.ClientSession, base_url: str, load: Load, rng: random.Random
) -> Sample:
    """Send one request and read its answer to the end."""
    started = time.perf_counter()
    pieces: list[float] = []
    tokens: int | None = None
    error: str | None = None
    try:
        async with session.post(base_url + PATHS[load.endpoint], json=load.body(rng)) as answer:
            if answer.status != 200:
                error = f"HTTP {answer.status}: {(await answer.text())[:200]}"
            else:
                done = False
                async for line in answer.content:
                    if not line.startswith(b"data: "):
                        continue
                    if line.startswith(b"data: [DONE]"):
                        done = True
                        continue
                    frame = orjson.loads(line[6:])
                    if "error" in frame:
                        error = str(frame["error"])[:200]
                    elif usage := frame.get("usage"):
                        tokens = usage["completion_tokens"]
                    if _text(frame):
                        pieces.append(time.perf_counter())
                if not done and error is None:
                    error = "the stream ended without [DONE]"
                elif not pieces and error is None:
                    error = "the answer has no text"
    except (aiohttp.ClientError, TimeoutError, ValueError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    return Sample(
        started_s=started,
        ended_s=time.perf_counter(),
        pieces_s=pieces,
        tokens=len(pieces) if tokens is None else tokens,
        usage_known=tokens is not None,
        error=error,
    )


def _text(frame: dict[str, Any]) -> str | None:
    choices = frame.get("choices")
    if not choices:
        return None
    found = choices[0].get("text") or choices[0].get("delta", {}).get("content")
    return found if isinstance(found, str) else None
