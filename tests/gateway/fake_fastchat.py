"""A scripted worker of FastChat's wire."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic_core import from_json, to_json

from protocol.conversation import named
from protocol.fleet import ModelRecord, WorkerRecord
from protocol.framing import NUL
from tests.gateway.fakes import MODEL, record


@dataclass
class FakeFastChatWorker:
    """Sends cumulative `texts`, one a frame.

    Attributes:
        fail_with: an error code that takes the place of the first frame.
        hang: never end the stream.
        cut: end the connection in the middle of a frame.
    """

    texts: tuple[str, ...] = ("He", "Hello", "Hello wor", "Hello world")
    finish_reason: str = "stop"
    template: str = "vicuna_v1.1"
    context_length: int = 100
    fail_with: int = 0
    hang: bool = False
    cut: bool = False
    logprobs: bool = False
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    running: int = 0

    def app(self) -> web.Application:
        app = web.Application()
        for path in (
            "/worker_get_conv_template",
            "/model_details",
            "/count_token",
            "/worker_get_embeddings",
            "/worker_get_status",
        ):
            app.router.add_post(path, self._answer)
        app.router.add_post("/worker_generate_stream", self._generate)
        return app

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for called, body in self.calls if called == path]

    async def _answer(self, request: web.Request) -> web.Response:
        body = from_json(await request.read() or b"{}")
        self.calls.append((request.path, body))
        answers: dict[str, Any] = {
            "/worker_get_conv_template": {"conv": named(self.template).to_wire()},
            "/model_details": {"context_length": self.context_length},
            "/count_token": {"count": len(body.get("prompt", "").split()), "error_code": 0},
            "/worker_get_status": {"model_names": [MODEL], "speed": 1, "queue_length": 0},
            "/worker_get_embeddings": {
                "embedding": [[0.5, -0.25]] * len(body.get("input", ())),
                "token_num": 4,
            },
        }
        return web.Response(body=to_json(answers[request.path]), content_type="application/json")

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        self.calls.append((request.path, from_json(await request.read())))
        response = web.StreamResponse()
        self.running += 1
        try:
            await response.prepare(request)
            if self.fail_with:
                frame = {"text": "NETWORK ERROR (secret)", "error_code": self.fail_with}
                await response.write(to_json(frame) + NUL)
                return response
            for number, text in enumerate(self.texts):
                last = number == len(self.texts) - 1
                if self.cut and last:
                    await response.write(b'{"text": "Hel')
                    break
                await response.write(to_json(self._frame(number, text, last)) + NUL)
            if self.hang:
                await asyncio.sleep(60)
            await response.write_eof()
            return response
        finally:
            self.running -= 1

    def _frame(self, number: int, text: str, last: bool) -> dict[str, Any]:
        frame: dict[str, Any] = {
            "text": text,
            "error_code": 0,
            "usage": {"prompt_tokens": 9, "completion_tokens": number + 1, "total_tokens": 0},
            "finish_reason": self.finish_reason if last else None,
        }
        if self.logprobs:
            frame["logprobs"] = {
                "tokens": [f"t{i}" for i in range(number + 1)],
                "token_logprobs": [-float(i) for i in range(number + 1)],
                "top_logprobs": [{}] * (number + 1),
                "text_offset": list(range(number + 1)),
            }
        return frame


def fastchat_record(address: str, context_length: int = 0) -> WorkerRecord:
    """As the controller keeps it."""
    model = ModelRecord(name=MODEL, context_length=context_length)
    return record("fastchat-1", address, models=(model,), wire="fastchat")
