"""`trireme chat` in a pipe and on a terminal, against an API that streams as OpenAI's does."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.cli.conftest import Terminal
from trireme.cli.chat import printable

Serve = Callable[[ASGIApp], str]
Trireme = Callable[..., subprocess.CompletedProcess[str]]


class FakeApi:
    """Echoes the last message; `hang`, `fail` and `break` in it do what they say."""

    def __init__(self, *models: str) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.cancelled = threading.Event()
        self._models = models
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._list),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    async def _list(self, request: Request) -> Response:
        self.keys.append(request.headers.get("authorization"))
        if request.headers.get("authorization") == "Bearer wrong":
            error = {"error": {"message": "Incorrect API key.", "code": "invalid_api_key"}}
            return JSONResponse(error, status_code=401)
        return JSONResponse({"object": "list", "data": [{"id": name} for name in self._models]})

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        text = body["messages"][-1]["content"]
        if text == "fail":
            error = {"error": {"message": "The model is overloaded.", "code": "overloaded"}}
            return JSONResponse(error, status_code=503)
        return StreamingResponse(self._stream(text), media_type="text/event-stream")

    async def _stream(self, text: str) -> AsyncIterator[str]:
        def frame(**fields: Any) -> str:
            return f"data: {json.dumps(fields)}\n\n"

        def delta(content: str, finish: str | None = None) -> str:
            return frame(choices=[{"delta": {"content": content}, "finish_reason": finish}])

        yield ": ping\n\n"
        yield frame(choices=[{"delta": {"role": "assistant"}, "finish_reason": None}])
        if text == "think":
            yield frame(choices=[{"delta": {"reasoning_content": "It th"}}])
            yield frame(choices=[{"delta": {"reasoning_content": "inks."}}])
        yield delta("You said: ")
        if text == "hang":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if text == "lose":
            yield frame(error={"message": "The worker was lost.", "code": "worker_lost"})
            return
        if text == "break":
            return
        yield delta(text, "stop")
        yield frame(choices=[], usage={"completion_tokens": 5})
        yield "data: [DONE]\n\n"


@pytest.fixture
def api() -> FakeApi:
    return FakeApi("alpha", "beta")


def test_a_pipe_gets_answers_and_nothing_else(api: FakeApi, serve: Serve, trireme: Trireme) -> None:
    url = serve(api.app)
    shown = trireme("chat", "--base-url", f"{url}/v1", stdin="one\n\ntwo")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == "You said: one\nYou said: two\n"
    assert api.asked[1]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "You said: one"},
        {"role": "user", "content": "two"},
    ]
    assert api.asked[0]["model"] == "alpha"
    assert api.asked[0]["stream"] is True
    assert "temperature" not in api.asked[0]


def test_what_the_model_thinks_is_for_a_terminal(
    api: FakeApi, serve: Serve, trireme: Trireme, terminal_of: Callable[..., Terminal]
) -> None:
    url = serve(api.app)
    piped = trireme("chat", "--base-url", f"{url}/v1", stdin="think\nagain")
    assert piped.stdout == "You said: think\nYou said: again\n"
    assert api.asked[1]["messages"][1] == {"role": "assistant", "content": "You said: think"}
    talk = terminal_of("chat", "--base-url", f"{url}/v1")
    talk.expect("> ")
    talk.type("think\r")
    talk.expect("It th")
    talk.expect("inks.")
    talk.expect("You said: think")


def test_commands_change_model_system_and_history(
    api: FakeApi, serve: Serve, trireme: Trireme
) -> None:
    url = serve(api.app)
    lines = ["one", "/system be brief", "/model beta", "/reset", "two", "/system -", "three"]
    shown = trireme("chat", "--base-url", f"{url}/v1/", stdin="\n".join([*lines, "/quit", "four"]))
    assert shown.returncode == 0, shown.stderr
    assert api.asked[1]["model"] == "beta"
    assert api.asked[1]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "two"},
    ]
    assert [each["role"] for each in api.asked[2]["messages"]] == ["user", "assistant", "user"]
    assert len(api.asked) == 3


def test_flags_reach_the_request(api: FakeApi, serve: Serve, trireme: Trireme) -> None:
    flags = ["--model", "beta", "--system", "s", "--temperature", "0", "--max-tokens", "7"]
    url = serve(api.app)
    trireme("chat", "--base-url", f"{url}/v1", "--api-key", "k", *flags, stdin="x")
    (asked,) = api.asked
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("beta", 0, 7)
    assert asked["messages"][0] == {"role": "system", "content": "s"}
    assert api.keys == ["Bearer k"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("fail", "The model is overloaded."),
        ("lose", "The worker was lost."),
        ("break", "broken off"),
        ("/model gamma", "gamma is not served; there is: alpha, beta"),
    ],
)
def test_in_a_pipe_an_error_ends_it(
    api: FakeApi, serve: Serve, trireme: Trireme, line: str, reason: str
) -> None:
    url = serve(api.app)
    shown = trireme("chat", "--base-url", f"{url}/v1", stdin=f"{line}\nnext\n")
    assert reason in shown.stderr
    assert shown.returncode == 1
    assert "next" not in shown.stdout


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--model", "gamma"), "gamma is not served"),
        (("--api-key", "wrong"), "Incorrect API key."),
    ],
)
def test_a_bad_start_is_told(
    api: FakeApi, serve: Serve, trireme: Trireme, flags: tuple[str, ...], reason: str
) -> None:
    shown = trireme("chat", "--base-url", f"{serve(api.app)}/v1", *flags, stdin="x")
    assert shown.returncode == 1
    assert reason in shown.stderr


def test_nobody_there_or_nothing_served(serve: Serve, trireme: Trireme) -> None:
    nobody = trireme("chat", "--base-url", "http://127.0.0.1:1/v1", stdin="x")
    assert nobody.returncode == 1
    assert "no answer from http://127.0.0.1:1/v1" in nobody.stderr
    nothing = trireme("chat", "--base-url", f"{serve(FakeApi().app)}/v1", stdin="x")
    assert nothing.returncode == 1
    assert "no model is served yet" in nothing.stderr


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\tc\nd\x9b1m\x07é😀") == "a[2Jb\tc\nd1mé😀"


def test_a_conversation_on_a_terminal(
    api: FakeApi, serve: Serve, terminal_of: Callable[..., Terminal]
) -> None:
    terminal = terminal_of("chat", "--base-url", f"{serve(api.app)}/v1")
    terminal.expect("Talking to alpha")
    terminal.expect("> ")
    terminal.type("hello\r")
    terminal.expect("You said: hello")
    terminal.expect("5 tokens")
    terminal.type("/help\r")
    terminal.expect("/reset")
    terminal.type("/model\r")
    terminal.expect("* alpha")
    terminal.type("/nonsense\r")
    terminal.expect("no command /nonsense")
    terminal.type("fail\r")
    terminal.expect("The model is overloaded.")
    terminal.type("hang\r")
    terminal.expect("You said: ")
    terminal.type("\x03")
    terminal.expect("cancelled")
    assert api.cancelled.wait(5)
    terminal.expect("> ")
    terminal.interrupt("Ctrl-D")
    terminal.type("/reset\r")
    terminal.expect("forgotten")
    terminal.type("again\r")
    terminal.expect("You said: again")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.exit_code() == 0
    assert len(api.asked[-1]["messages"]) == 1
