"""An OpenAI-compatible backend without a model, for gateways that do not speak our workers' wire.

As cheap as it can be made in Python (a protocol on the socket, a C parser, ready bytes), and the
same answer to the same request. It is still not free, and neither is the worker of ours that
stands behind our own gateway and FastChat's: so gateways are compared by the CPU time of their own
processes, by pid, and by the latency that they add to that of their own backend asked directly.
Run it with `python -m benchmarks.peers.simulated_backend --help`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httptools
import orjson
import uvloop

from benchmarks.peers.process import chats, servers
from benchmarks.systems import Target

WORDS = (" river", " stone", " harbour", " lantern", " copper", " meadow", " signal", " winter")
CREATED = 1_700_000_000
ID = "chatcmpl-simulated"


@dataclass(frozen=True, slots=True)
class Pace:
    """How an answer comes: `tokens` of them unless the request says, the first after `ttft_s`,
    then one each `itl_s`; tokens that would come at once come in one write."""

    tokens: int = 8
    ttft_s: float = 0.0
    itl_s: float = 0.0


@contextlib.contextmanager
def simulated(logs: Path, model: str, pace: Pace | None = None) -> Iterator[Target]:
    """The backend as a process.

    Raises:
        PeerFailed: it does not start.
    """
    pace = pace or Pace()
    root = str(Path(__file__).parents[2])

    def command(port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "benchmarks.peers.simulated_backend"),
            *("--port", str(port), "--model", model, "--tokens", str(pace.tokens)),
            *("--ttft-ms", str(1000 * pace.ttft_s), "--itl-ms", str(1000 * pace.itl_s)),
        ]

    with servers(logs) as running:
        server = running.start("simulated", command, extra={"PYTHONPATH": root})
        running.wait_until(lambda: chats(server.url, model), "answering", timeout_s=60)
        yield Target("simulated backend", server.url, model, running.pids)


def frame(model: str, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
    """One server-sent event."""
    body: dict[str, Any] = {
        "id": ID,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": model,
        "choices": choices,
    }
    if usage is not None:
        body["usage"] = usage
    return b"data: " + orjson.dumps(body) + b"\n\n"


def choice(delta: dict[str, str], finish_reason: str | None = None) -> list[dict[str, Any]]:
    """The choices of a chunk that says something."""
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]


class Answers:
    """The bytes of every answer, made once."""

    def __init__(self, model: str) -> None:
        self.first = frame(model, choice({"role": "assistant"}))
        self.words = [frame(model, choice({"content": word})) for word in WORDS]
        self.last = frame(model, choice({}, "length"))
        self.model = model
        card = {"id": model, "object": "model", "created": CREATED, "owned_by": "simulated"}
        self.models = orjson.dumps({"object": "list", "data": [card]})
        # what a router of SGLang servers asks
        self.info = orjson.dumps({"model_path": model, "is_generation": True, "status": "ready"})

    def tokens(self, start: int, stop: int) -> bytes:
        """The frames of the tokens from `start` up to `stop`."""
        return b"".join([self.words[place % len(WORDS)] for place in range(start, stop)])

    def end(self, tokens: int, usage: bool) -> bytes:
        """What comes after the last token."""
        counted = frame(self.model, [], _usage(tokens)) if usage else b""
        return self.last + counted + b"data: [DONE]\n\n"

    def whole(self, tokens: int) -> bytes:
        """The answer to a request that does not stream."""
        text = "".join(WORDS[place % len(WORDS)] for place in range(tokens))
        message = {"role": "assistant", "content": text, "refusal": None}
        only = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
        return orjson.dumps(
            {
                "id": ID,
                "object": "chat.completion",
                "created": CREATED,
                "model": self.model,
                "choices": [only],
                "usage": _usage(tokens),
            }
        )


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}


class Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection; requests on it are answered one after the other."""

    def __init__(self, answers: Answers, pace: Pace) -> None:
        self._answers = answers
        self._pace = pace
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._path = b""
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what answers are written to."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        """Write no more."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which calls the `on_` methods."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.close()

    def on_message_begin(self) -> None:
        """A new request."""
        self._body.clear()

    def on_url(self, url: bytes) -> None:
        """Its path."""
        self._path = url.partition(b"?")[0]

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer it."""
        if self._path != b"/v1/chat/completions":
            self._write_whole(
                self._answers.models if self._path == b"/v1/models" else self._answers.info
            )
            return
        asked = orjson.loads(b"".join(self._body))
        tokens = asked.get("max_tokens") or asked.get("max_completion_tokens") or self._pace.tokens
        if asked.get("stream"):
            usage = bool((asked.get("stream_options") or {}).get("include_usage"))
            self._stream(tokens, usage)
        else:
            self._later(
                self._pace.ttft_s + self._pace.itl_s * (tokens - 1),
                lambda: self._write_whole(self._answers.whole(tokens)),
            )

    def _write_whole(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._write(head % len(body) + body)

    def _stream(self, tokens: int, usage: bool) -> None:
        """Chunked; a paced stream keeps to the clock, so that a late token makes no other late."""
        loop = asyncio.get_running_loop()
        began_s = loop.time() + self._pace.ttft_s
        self._write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
        )

        def go_on(sent: int) -> None:
            itl_s = self._pace.itl_s
            due = int((loop.time() - began_s) / itl_s + 1.001) if itl_s else tokens
            upto = max(sent + 1, min(due, tokens))
            piece = (b"" if sent else self._answers.first) + self._answers.tokens(sent, upto)
            if upto == tokens:
                self._write(_chunk(piece + self._answers.end(tokens, usage)) + b"0\r\n\r\n")
                return
            self._write(_chunk(piece))
            self._later(began_s + upto * itl_s - loop.time(), lambda: go_on(upto))

        self._later(self._pace.ttft_s, lambda: go_on(0))

    def _later(self, delay_s: float, what: Any) -> None:
        if delay_s > 0:
            self._timer = asyncio.get_running_loop().call_later(delay_s, what)
        else:
            what()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(port: int, answers: Answers, pace: Pace) -> None:
    """Listen on loopback until cancelled."""
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(answers, pace), "127.0.0.1", port, backlog=4096
    )
    async with server:
        await server.serve_forever()


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server without a model.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="sim", help="name of its model")
    parser.add_argument("--tokens", type=int, default=8, help="when a request does not say")
    parser.add_argument("--ttft-ms", type=float, default=0.0, help="time to the first token")
    parser.add_argument("--itl-ms", type=float, default=0.0, help="time between tokens")
    asked = parser.parse_args()
    pace = Pace(asked.tokens, asked.ttft_ms / 1000, asked.itl_ms / 1000)
    uvloop.run(serve(asked.port, Answers(asked.model), pace))


if __name__ == "__main__":
    main()
