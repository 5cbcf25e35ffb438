"""A tier's edge stands before all that the framework brings; faults become its errors."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import httpx
import pytest
from fastapi import APIRouter, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.errors import TriremeError
from trireme.service.control import failed, install_error_handlers
from trireme.service.shortcut import Shortcut, routes_of
from trireme.service.tier_app import TierApp

passed: list[str] = []


class Marked:
    def __init__(self, app: ASGIApp, name: str) -> None:
        self._app, self._name = app, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(self._name)
        await self._app(scope, receive, send)


def made(endpoint: Callable[[Request], Awaitable[Response]]) -> TierApp:
    router = APIRouter()
    router.get("/busy", response_model=None)(endpoint)
    router.get("/rare", response_model=None)(endpoint)
    app = TierApp()
    app.add_middleware(Marked, name="framework")
    app.add_edge(
        Shortcut,
        tier="controller",
        routes=routes_of(router, "/busy"),
        render=failed,
    )
    app.add_edge(Marked, name="edge")
    install_error_handlers(app, "controller")
    app.include_router(router)
    return app


async def get(app: TierApp, path: str) -> httpx.Response:
    passed.clear()
    transport = httpx.ASGITransport(app)  # raises what the server would have to log
    async with httpx.AsyncClient(transport=transport, base_url="http://tier") as http:
        return await http.get(path)


async def test_the_busiest_routes_pass_the_edge_alone() -> None:
    async def endpoint(request: Request) -> Response:
        assert isinstance(request.app, TierApp)
        return Response(request.url.path)

    app = made(endpoint)
    assert ((await get(app, "/busy")).text, passed) == ("/busy", ["edge"])
    assert ((await get(app, "/rare")).text, passed) == ("/rare", ["edge", "framework"])


@pytest.mark.parametrize("path", ["/busy", "/rare"])
async def test_a_fault_of_an_endpoint_is_a_500_and_a_trace_in_the_log(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def endpoint(_request: Request) -> Response:
        raise ZeroDivisionError("a secret")

    with caplog.at_level(logging.ERROR):
        answer = await get(made(endpoint), path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.json()["error"]["message"] == "The controller failed; its log has the reason."
    assert [one.getMessage() for one in caplog.records] == ["request failed"], "told once"
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("path", ["/busy", "/rare"])
async def test_an_error_of_the_taxonomy_keeps_its_status(path: str) -> None:
    async def endpoint(_request: Request) -> Response:
        raise TriremeError("overloaded", "full", retry_after_s=2.0)

    answer = await get(made(endpoint), path)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
