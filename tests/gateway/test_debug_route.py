"""`x-trireme-worker`, `x-trireme-attempts` and GET /debug/route/{request id}."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from gateway.breaker import FAILURES_IN_A_ROW
from gateway.operators import OperatorGuard
from protocol.errors import TriremeError
from protocol.route_report import RouteReport
from tests.gateway.fakes import MODEL, FakeWorker, Stack, record, stack, until
from trireme.service.auth import TokenSet

HELLO: list[Any] = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": HELLO}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/api/v1/chat/completions": CHAT,
    "/v1/completions": {"model": MODEL, "prompt": ["a", "b"]},
    "/v1/responses": {"model": MODEL, "input": "hi"},
    "/v1/messages": {**CHAT, "max_tokens": 5},
}
UNSTREAMED: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"model": MODEL, "input": "hi"},
    "/v1/messages/count_tokens": CHAT,
    "/tokenize": {"model": MODEL, "prompt": "hi"},
    "/api/v1/token_check": {"prompts": [{"model": MODEL, "prompt": "hi", "max_tokens": 1}]},
}
ID = "0123456789abcdef0123456789abcdef"


async def route_of(
    http: aiohttp.ClientSession, s: Stack, request_id: str, **headers: str
) -> tuple[int, Any]:
    async with http.get(f"{s.url}/debug/route/{request_id}", headers=headers) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ROUTES)
async def test_an_answer_names_its_worker(
    http: aiohttp.ClientSession, path: str, stream: bool
) -> None:
    async with (
        stack(FakeWorker(ID)) as s,
        http.post(s.url + path, json={**ROUTES[path], "stream": stream}) as answer,
    ):
        assert answer.status == 200, await answer.text()
        assert answer.headers["x-trireme-worker"] == ID[:8]
        assert answer.headers["x-trireme-attempts"] == "1"


@pytest.mark.parametrize("path", UNSTREAMED)
async def test_an_answer_that_is_no_stream_names_its_worker(
    http: aiohttp.ClientSession, path: str
) -> None:
    async with (
        stack(FakeWorker(ID)) as s,
        http.post(s.url + path, json=UNSTREAMED[path]) as answer,
    ):
        assert answer.status == 200, await answer.text()
        assert answer.headers["x-trireme-worker"] == ID[:8]
        assert answer.headers["x-trireme-attempts"] == "1"


@pytest.mark.parametrize("path", ["/v1/score", "/v1/rerank"])
async def test_an_error_after_an_attempt_names_the_worker_too(
    http: aiohttp.ClientSession, path: str
) -> None:
    score = {"model": MODEL, "text_1": "a", "text_2": "b", "query": "a", "documents": ["b"]}
    names = ("query", "documents") if path == "/v1/rerank" else ("text_1", "text_2")
    models = (record().models[0].model_copy(update={"capabilities": ("score",)}),)
    async with stack(FakeWorker(ID)) as s:
        s.controller.set(record(ID, s.workers[0].address, models=models))
        await until(lambda: "score" in s.app.state.gateway.view.snapshot.models[MODEL].capabilities)
        body = {"model": MODEL} | {name: score[name] for name in names}
        async with http.post(s.url + path, json=body) as answer:  # the fake has no such route
            assert answer.status == 502
            assert answer.headers["x-trireme-worker"] == ID[:8]


async def test_the_second_try_is_counted(http: aiohttp.ClientSession) -> None:
    refusing = FakeWorker("w1", refuse=TriremeError("draining", "no"))
    async with stack(refusing, FakeWorker("w2")) as s:
        seen = set()
        for _ in range(20):
            async with http.post(s.url + "/v1/chat/completions", json=CHAT) as answer:
                assert answer.headers["x-trireme-worker"] == "w2"
                seen.add(answer.headers["x-trireme-attempts"])
        assert seen == {"1", "2"}


async def test_an_answer_without_an_attempt_names_nobody(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker("w1")) as s:
        for body in ({**CHAT, "model": "nope"}, {**CHAT, "temperature": 9}):
            async with http.post(s.url + "/v1/chat/completions", json=body) as answer:
                assert answer.status in (400, 404)
                assert "x-trireme-worker" not in answer.headers


async def test_a_browser_may_read_the_headers(http: aiohttp.ClientSession) -> None:
    async with (
        stack(FakeWorker("w1")) as s,
        http.post(
            s.url + "/v1/chat/completions", json=CHAT, headers={"Origin": "https://a.example"}
        ) as answer,
    ):
        exposed = answer.headers["access-control-expose-headers"]
        assert {"x-trireme-worker", "x-trireme-attempts"} <= set(exposed.split(", "))


async def test_the_report_says_what_became_of_each_attempt(http: aiohttp.ClientSession) -> None:
    dying = FakeWorker("w1", die_after=2)
    async with stack(dying, FakeWorker("w2"), routing="least_loaded") as s:
        for number in range(50):
            headers = {"x-request-id": f"mine/{number}"}
            async with http.post(
                s.url + "/v1/chat/completions", json=CHAT, headers=headers
            ) as answer:
                assert answer.status == 200
                if answer.headers["x-trireme-attempts"] == "2":
                    break
        status, body = await route_of(http, s, f"mine/{number}")
        assert status == 200
        report = RouteReport.model_validate(body)
        first, second = report.attempts
        assert (first.worker, first.outcome, first.number) == ("w1", "worker_lost", 1)
        assert (second.worker, second.outcome, second.number) == ("w2", "done", 2)
        assert [(one.reason, list(one.workers)) for one in second.left_out] == [("tried", ["w1"])]
        assert second.cached_tokens == 3
        assert second.candidates[0].worker == "w2"
        assert first.address == s.workers[0].address


async def test_an_ejected_worker_is_named(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker("w1"), FakeWorker("w2")) as s:
        breaker = s.app.state.gateway.dispatcher._breakers["w1"]
        for _ in range(FAILURES_IN_A_ROW):
            breaker.end(True, asyncio.get_running_loop().time())
        headers = {"x-request-id": "asked"}
        async with http.post(s.url + "/v1/chat/completions", json=CHAT, headers=headers):
            _, body = await route_of(http, s, "asked")
        assert body["attempts"][0]["left_out"] == [
            {"reason": "ejected", "workers": ["w1"], "count": 1}
        ]


async def test_a_client_that_left_is_an_attempt_that_was_cancelled(
    http: aiohttp.ClientSession,
) -> None:
    async with stack(FakeWorker("w1", hang_after=2)) as s:
        asked = await http.post(
            s.url + "/v1/chat/completions",
            json={**CHAT, "stream": True},
            headers={"x-request-id": "asked"},
        )
        _, body = await route_of(http, s, "asked")
        assert body["attempts"][0]["outcome"] == "running"
        asked.close()
        await until(lambda: s.workers[0].aborted)
        _, body = await route_of(http, s, "asked")
        assert body["attempts"][0]["outcome"] == "cancelled"


async def test_an_unknown_request_is_a_404_that_says_how_many_are_kept(
    http: aiohttp.ClientSession,
) -> None:
    async with stack(FakeWorker("w1")) as s:
        status, body = await route_of(http, s, "nope")
        assert status == 404
        assert "last 1000" in body["error"]["message"]


async def test_with_a_cluster_token_nothing_else_opens_it(http: aiohttp.ClientSession) -> None:
    async with stack(
        FakeWorker("w1", token="cluster"), cluster_token="cluster", api_keys="key"
    ) as s:
        s.controller.token = "cluster"
        for key in ("key", "wrong", "clust\u00e9r"):
            status, body = await route_of(http, s, "x", Authorization=f"Bearer {key}")
            assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        assert (await route_of(http, s, "x"))[0] == 401
        assert (await route_of(http, s, "x", **{"x-api-key": "cluster"}))[0] == 401
        assert (await route_of(http, s, "x", Authorization="Bearer cluster"))[0] == 404
        async with http.get(
            s.url + "/v1/models", headers={"Authorization": "Bearer cluster"}
        ) as answer:
            assert answer.status == 401, "the cluster token is no API key"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-for": "127.0.0.1"},
        {"forwarded": "for=127.0.0.1"},
        {"origin": "https://a.example"},
        {"host": "a.example"},
        {"host": "127.0.0.1.a.example:80"},
    ],
)
async def test_without_a_token_neither_a_proxy_nor_a_web_page_is_answered(
    http: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    async with stack(FakeWorker("w1")) as s:
        assert (await route_of(http, s, "x"))[0] == 404, "this machine is"
        assert (await route_of(http, s, "x", **headers))[0] == 401


@pytest.mark.parametrize(
    ("peer", "answered"), [("127.0.0.1", True), ("::1", True), ("10.0.0.9", False), (None, False)]
)
def test_without_a_token_another_machine_is_not_answered(peer: str | None, answered: bool) -> None:
    scope = {
        "type": "http",
        "path": "/debug/route/x",
        "headers": [(b"host", b"localhost:8000")],
        "client": (peer, 1234) if peer else None,
    }
    refusal = OperatorGuard(TokenSet([]), has_keys=False)(scope)
    assert (refusal is None) is answered


async def test_with_keys_and_without_a_token_nobody_is_answered(
    http: aiohttp.ClientSession,
) -> None:
    """A proxy on this machine need not say that it is one, and lets every client through."""
    async with stack(FakeWorker("w1"), api_keys="key") as s:
        for headers in ({}, {"Authorization": "Bearer key"}, {"host": "127.0.0.1:8000"}):
            status, body = await route_of(http, s, "x", **headers)
            assert status == 401
            assert "--cluster-token" in body["error"]["message"]
