"""Requests that end otherwise than well: abandoned at random moments, invalid, too long, too late.

Each kind says which statuses are right; anything else, a 500 above all, is a fault.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

Body = dict[str, Any]
Maker = Callable[[random.Random], tuple[bytes, Mapping[str, str]]]

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    Attributes:
        make: gives a body, and headers.
        statuses: what may come of it.
        leaves: whether the client goes away at some moment, whatever has come by then.
    """

    make: Maker
    statuses: tuple[int, ...] = (200,)
    leaves: bool = False


@dataclass
class Seen:
    """What came of all of them: how often each status, and what was wrong."""

    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def kinds(model: str, context_length: int, *, grammars: bool) -> dict[str, Kind]:
    """All kinds, by name.

    Args:
        grammars: whether the model can be held to schemas and forced to call tools.
    """

    def chat(rng: random.Random, **fields: Any) -> Body:
        content = f"Number {rng.randrange(10**6)}: what is behind the hills?"
        return {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": rng.randint(1, 48),
            "seed": rng.randrange(1000),
            "stream": rng.random() < 0.6,
            **fields,
        }

    def sends(**fields: Any) -> Maker:
        return lambda rng: (json.dumps(chat(rng, **fields)).encode(), {})

    def late(rng: random.Random) -> tuple[bytes, Mapping[str, str]]:
        body = json.dumps(chat(rng, max_tokens=400, ignore_eos=True)).encode()
        return body, {"x-request-timeout-ms": str(rng.randint(1, 60))}

    def object_of(schema: Any) -> Body:
        return {"type": "json_schema", "json_schema": {"name": "o", "schema": schema}}

    good = object_of({"type": "object", "properties": {"a": {"type": "string", "maxLength": 20}}})
    found = {
        "served": Kind(sends()),
        "leaves": Kind(sends(max_tokens=400, ignore_eos=True), leaves=True),
        "leaves two choices": Kind(sends(max_tokens=400, n=2, ignore_eos=True), leaves=True),
        "four choices": Kind(sends(n=4)),
        "stop": Kind(sends(stop=["a", "e", "o"], max_tokens=64)),
        "late": Kind(late, (200, 504)),
        "no JSON": Kind(lambda rng: (b'{"model": ' + rng.randbytes(8), {}), (400,)),
        "no messages": Kind(sends(messages=[]), (400,)),
        "no such model": Kind(sends(model="nobody"), (404,)),
        "no such range": Kind(sends(temperature=9.5), (400,)),
        "no such field": Kind(sends(frobnicate=True), (400,)),
        "too long": Kind(
            sends(messages=[{"role": "user", "content": "long " * context_length}]), (400,)
        ),
        "tool without a name": Kind(sends(tools=[{"type": "function"}]), (400,)),
        "a tool that is not there": Kind(
            sends(tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "mail"}}),
            (400,),
        ),
    }
    if grammars:
        found |= {
            "bad schema": Kind(sends(response_format=object_of({"type": "nonsense"})), (400,)),
            "schema": Kind(sends(response_format=good, max_tokens=64)),
            "leaves a schema": Kind(sends(response_format=good, max_tokens=200), leaves=True),
            "leaves a tool": Kind(sends(tools=[WEATHER], tool_choice="required"), leaves=True),
        }
    return found


async def abuse(
    gateway: str,
    chosen: Mapping[str, Kind],
    count: int,
    *,
    clients: int,
    seed: int,
    leave_within_s: float,
) -> Seen:
    """So many requests of random kinds, some at once.

    Each has a connection of its own: that is what a client that goes away closes.
    """
    seen = Seen()
    numbers = iter(range(count))
    host, port = urlsplit(gateway).hostname, urlsplit(gateway).port
    weights = [3 if kind.leaves else 1 for kind in chosen.values()]

    async def client(number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        for _ in numbers:
            [(name, kind)] = rng.choices(list(chosen.items()), weights)
            body, headers = kind.make(rng)
            fields = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
            head = (
                "POST /v1/chat/completions HTTP/1.1\r\nHost: chaos\r\nConnection: close\r\n"
                f"Content-Type: application/json\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
            )
            # a third of those who leave do so before all of the request is there
            whole = head.encode() + body
            cut = rng.randrange(len(whole)) if kind.leaves and rng.random() < 0.3 else len(whole)
            patience_s = rng.uniform(0, leave_within_s) if kind.leaves else 60.0
            try:
                status = await _exchange(host, port, whole[:cut], patience_s)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                if not kind.leaves:
                    seen.faults.append(f"{name}: {type(error).__name__}: {error}")
                continue
            seen.statuses["left" if status is None else str(status)] += 1
            if status is None and kind.leaves:
                continue
            if status not in kind.statuses:
                seen.faults.append(f"{name}: HTTP {status}")

    await asyncio.gather(*(client(number) for number in range(clients)))
    return seen


async def _exchange(
    host: str | None, port: int | None, data: bytes, patience_s: float
) -> int | None:
    """Send, and read to the end, or until patience ends: the status, None when it was left."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(data)
        try:
            async with asyncio.timeout(patience_s):
                status = int((await reader.readuntil(b"\r\n")).split()[1])
                while await reader.read(65536):
                    pass
        except TimeoutError:
            return None
        return status
    finally:
        writer.transport.abort()
