"""Tokens and scores at the gateway: who is asked, and what a worker that cannot makes of it."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic_core import from_json

from protocol.errors import TriremeError
from protocol.fleet import ModelRecord
from tests.gateway.fake_fastchat import FakeFastChatWorker, fastchat_record
from tests.gateway.fakes import MODEL, FakeWorker, record, serving, stack, until

SCORE: dict[str, Any] = {"text_1": "a", "text_2": ["b", "c", "d"]}
RERANK: dict[str, Any] = {"query": "a", "documents": ["b", "c", "d"]}
ALL = ("chat", "completions", "embeddings", "score")


class ScoringWorker(FakeWorker):
    """Scores documents by their place; has tokens of its own."""

    def app(self) -> web.Application:
        app = super().app()
        app.router.add_post("/native/score", self._score)
        app.router.add_post("/native/detokenize", self._detokenize)
        return app

    async def _score(self, request: web.Request) -> web.Response:
        body = from_json(await request.read())
        self.bodies.append(("score", body))
        if self.refuse is not None:
            return web.json_response({"error": self.refuse.to_wire()}, status=400)
        count = len(body["documents"])
        return web.json_response({"scores": [0.25 * at for at in range(count)], "prompt_tokens": 9})

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = from_json(await request.read())
        return web.json_response({"text": " ".join(map(str, body["ids"]))})


def able(worker: FakeWorker) -> Any:
    model = ModelRecord(name=MODEL, digest="d" * 64, context_length=2048, capabilities=ALL)
    return record(worker.instance_id, worker.address, models=(model,))


async def post(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[int, Any]:
    async with http.post(url, json={"model": MODEL, **body}) as answer:
        return answer.status, await answer.json()


async def test_scores_and_ranks_of_one_call_each(http: aiohttp.ClientSession) -> None:
    async with stack(ScoringWorker()) as s:
        s.controller.set(able(s.workers[0]))
        await until(lambda: s.app.state.gateway.view.snapshot.models[MODEL].capabilities == ALL)
        status, scored = await post(http, s.url + "/v1/score", SCORE)
        assert status == 200
        assert [one["score"] for one in scored["data"]] == [0.0, 0.25, 0.5]
        assert scored["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
        status, ranked = await post(http, s.url + "/v1/rerank", {**RERANK, "top_n": 2})
        assert [one["index"] for one in ranked["results"]] == [2, 1]
        (_, first), (_, second) = s.workers[0].bodies
        assert (first["queries"], first["documents"]) == (["a"], ["b", "c", "d"])
        assert (second["instance_id"], second["digest"]) == ("w1", "d" * 64)


@pytest.mark.parametrize(
    ("path", "body", "named", "param"),
    [
        ("/v1/score", SCORE, "documents[1]", "text_2[1]"),
        ("/v1/score", SCORE, "queries[0]", "text_1[0]"),
        ("/v1/score", {"queries": "a", "documents": "b"}, "documents[0]", "documents[0]"),
        ("/v1/rerank", RERANK, "queries[0]", "query"),
        ("/v1/rerank", RERANK, "documents[2]", "documents[2]"),
        ("/v1/rerank", RERANK, "model", "model"),
    ],
)
async def test_a_workers_refusal_names_the_clients_own_field(
    http: aiohttp.ClientSession, path: str, body: dict[str, Any], named: str, param: str
) -> None:
    worker = ScoringWorker(refuse=TriremeError("invalid_value", "No.", param=named))
    async with stack(worker) as s:
        s.controller.set(able(worker))
        await until(lambda: s.app.state.gateway.view.snapshot.models[MODEL].capabilities == ALL)
        status, answer = await post(http, s.url + path, body)
        assert (status, answer["error"]["param"]) == (400, param)


async def test_a_model_that_scores_nothing_is_named(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker()) as s:
        for path, body in (("/v1/score", SCORE), ("/v1/rerank", RERANK)):
            status, answer = await post(http, s.url + path, body)
            error = answer["error"]
            assert (status, error["code"], error["param"]) == (400, "unsupported_by_model", "model")


async def test_a_fastchat_worker_has_no_tokens_to_give(http: aiohttp.ClientSession) -> None:
    fastchat = FakeFastChatWorker()
    async with serving(fastchat.app()) as address, stack() as s:
        s.controller.set(fastchat_record(address))
        await until(lambda: s.app.state.gateway.view.snapshot.models)
        for path, body in (
            ("/tokenize", {"prompt": "a"}),
            ("/detokenize", {"tokens": [1]}),
            ("/v1/score", SCORE),
        ):
            status, answer = await post(http, s.url + path, body)
            error = answer["error"]
            assert (status, error["code"], error["param"]) == (400, "unsupported_by_model", "model")


async def test_beside_a_fastchat_worker_the_native_one_is_asked(
    http: aiohttp.ClientSession,
) -> None:
    fastchat, native = FakeFastChatWorker(), ScoringWorker()
    async with serving(fastchat.app()) as address, stack(native) as s:
        s.controller.set(able(native), fastchat_record(address))
        await until(lambda: len(s.app.state.gateway.view.snapshot.workers) == 2)
        for _ in range(8):
            status, answer = await post(http, s.url + "/tokenize", {"prompt": "a b"})
            assert (status, answer["tokens"], answer["max_model_len"]) == (200, [0, 1], 2048)
            status, answer = await post(http, s.url + "/detokenize", {"tokens": [4, 5]})
            assert (status, answer) == (200, {"prompt": "4 5"})


async def test_an_unknown_model_is_a_404(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker()) as s:
        for path, body in (
            ("/tokenize", {"prompt": "a"}),
            ("/detokenize", {"tokens": [1]}),
            ("/score", SCORE),
            ("/rerank", RERANK),
        ):
            status, answer = await post(http, s.url + path, {**body, "model": "nope"})
            assert (status, answer["error"]["code"]) == (404, "model_not_found")
