"""Nothing but the health routes answers without the key or the token, however it is asked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import WebSocketRoute

import controller.app
import gateway.app
import worker.app
from controller.config import ControllerSettings
from gateway.config import GatewaySettings
from trireme.service.health import HEALTH_PATHS
from trireme.service.server import ExitRequest
from worker.config import Settings

SECRET = "geheim-ß"


def gateway_app() -> FastAPI:
    settings = GatewaySettings(api_keys=(SECRET,), cluster_token=SECRET)
    return gateway.app.create_app(settings)


def controller_app() -> FastAPI:
    return controller.app.create_app(ControllerSettings(cluster_token=SECRET))


def worker_app() -> FastAPI:
    settings = Settings(engine="sim", cluster_token=SECRET, no_register=True)
    made = worker.app.create_app(settings, address="http://x", exit_request=ExitRequest())
    return made.app


APPS: dict[str, Callable[[], FastAPI]] = {
    "gateway": gateway_app,
    "controller": controller_app,
    "worker": worker_app,
}


async def status_of(
    app: FastAPI, method: str, path: str, *headers: tuple[bytes, bytes], scheme: str = "http"
) -> int:
    """What the app answers; its lifespan has not begun, so nobody behind it is there."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": scheme,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"x"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
        "subprotocols": [],
    }
    await app(scope, receive, send)
    if scheme == "websocket":
        assert [one["type"] for one in sent] == ["websocket.close"]
        return 0
    return int(sent[0]["status"])


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path) of each route, those of the documents included."""

    def flat(routes: Any) -> Iterator[Any]:
        for route in routes:
            included = getattr(route, "original_router", route)
            inner = getattr(included, "routes", None)
            yield from flat(inner) if inner else [route]

    for route in flat(app.routes):
        assert not isinstance(route, WebSocketRoute)
        path = re.sub(r"\{[^}]*\}", "some", route.path)
        for method in getattr(route, "methods", None) or ("GET",):
            yield method, path


def described(app: FastAPI) -> set[str]:
    return {path.partition("{")[0] for path in app.openapi()["paths"]}


def variants(path: str) -> list[str]:
    """Ways to write it that a proxy, a router or a filesystem might take for another one."""
    return [
        path + "/",
        "/" + path,
        "//" + path,
        "/." + path,
        "/health/.." + path,
        "/metrics/../." + path,
        path + "/../health",
        path + ";/health",
        path + "/health",
        path + "\x00",
        path + "%2f..%2fhealth",
        "/%2e" + path,
        "/health" + path,
        path.upper(),
        path.replace("/", "\\"),
        "http://x" + path,
        path.lstrip("/"),
        "/debug/.." + path,
    ]


@pytest.mark.parametrize("tier", APPS)
def test_every_route_needs_the_secret(tier: str) -> None:
    app = APPS[tier]()
    found = list(routes_of(app))
    paths = {path for _, path in found}
    assert {"/openapi.json", "/docs", "/redoc", "/metrics"} <= paths
    for beginning in described(app):
        assert any(path.startswith(beginning) for path in paths), beginning
    locked = [(method, path) for method, path in found if path not in HEALTH_PATHS]
    assert len(locked) >= 12

    async def knock() -> None:
        for method, path in locked:
            for asked in {method, "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "X"}:
                assert await status_of(app, asked, path) == 401, (asked, path)
            for odd in variants(path):
                assert await status_of(app, method, odd) == 401, (method, odd)
            for value in (b"Bearer wrong", b"Bearer geheim-", b"Bearer \xff\xfe", b"Basic x", b""):
                status = await status_of(app, method, path, (b"authorization", value))
                assert status == 401, (method, path, value)

    asyncio.run(knock())


@pytest.mark.parametrize("tier", APPS)
def test_the_path_alone_decides(tier: str) -> None:
    """`request.url` is made of the Host header, which a client writes as it likes."""
    app = APPS[tier]()
    hosts = [
        b"x/health?",
        b"x/health#",
        b"/health",
        b"x\\health",
        b"",
        b"@/metrics",
        b"x:80/readyz",
    ]

    async def knock() -> None:
        for host in hosts:
            for name in (b"host", b"x-forwarded-host", b"x-original-url", b"x-rewrite-url"):
                status = await status_of(app, "GET", "/openapi.json", (name, host))
                assert status == 401, (name, host)

    asyncio.run(knock())


@pytest.mark.parametrize("tier", APPS)
def test_a_proxys_word_opens_nothing(tier: str) -> None:
    app = APPS[tier]()
    headers = [(b"x-forwarded-for", b"127.0.0.1"), (b"x-real-ip", b"127.0.0.1")]
    path = "/debug/route/x" if tier == "gateway" else "/openapi.json"
    assert asyncio.run(status_of(app, "GET", path, *headers)) == 401


@pytest.mark.parametrize("tier", APPS)
def test_websockets_are_closed_unheard(tier: str) -> None:
    app = APPS[tier]()
    for path in ("/", "/health", "/v1/chat/completions", "/native/generate", "/fleet", "/debug/x"):
        assert asyncio.run(status_of(app, "GET", path, scheme="websocket")) == 0


@pytest.mark.parametrize("tier", APPS)
def test_the_secret_opens(tier: str) -> None:
    """Else all of the above might be shut for another reason."""
    app = APPS[tier]()
    right = (b"authorization", f"Bearer {SECRET}".encode())
    assert asyncio.run(status_of(app, "GET", "/openapi.json", right)) == 200
    assert asyncio.run(status_of(app, "GET", "/nope", right)) == 404
    for path in HEALTH_PATHS - {"/readyz"}:
        assert asyncio.run(status_of(app, "GET", path)) == 200


@pytest.mark.parametrize("tier", ["controller", "worker"])
def test_without_a_token_no_web_page_is_answered(tier: str) -> None:
    """A browser sends a page's POST to any port of its machine, and says whose page it was."""
    open_apps: dict[str, Callable[[], FastAPI]] = {
        "controller": lambda: controller.app.create_app(ControllerSettings()),
        "worker": lambda: (
            worker.app.create_app(
                Settings(engine="sim", no_register=True),
                address="http://x",
                exit_request=ExitRequest(),
            ).app
        ),
    }
    app = open_apps[tier]()
    for method, path in routes_of(app):
        if path not in HEALTH_PATHS:
            for origin in (b"https://a.example", b"null", b"http://localhost:3000"):
                status = asyncio.run(status_of(app, method, path, (b"origin", origin)))
                assert status == 401, (method, path)
    assert asyncio.run(status_of(app, "GET", "/openapi.json")) == 200
