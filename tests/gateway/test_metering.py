"""What the gateway writes into its usage ledger, and what it does not."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from protocol.errors import TriremeError
from protocol.generation import Done, Event
from tests.gateway.fake_fastchat import FakeFastChatWorker, fastchat_record
from tests.gateway.fakes import (
    MODEL,
    WORDS,
    FakeWorker,
    Stack,
    scripted,
    serving,
    stack,
    until,
)

BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
BAD_LOGITS = TriremeError("bad_logits", "no")


async def ask(http: aiohttp.ClientSession, s: Stack, path: str, body: dict[str, Any]) -> int:
    headers = {"x-request-id": "mine", "Authorization": "Bearer key-a"}
    async with http.post(s.url + path, json=body, headers=headers) as answer:
        await answer.read()
        return answer.status


def rows(db: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(db)) as ledger:
        ledger.row_factory = sqlite3.Row
        if not ledger.execute("PRAGMA user_version").fetchone()[0]:
            return []
        return [dict(row) for row in ledger.execute("SELECT * FROM requests ORDER BY rowid")]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_finished_request_has_a_row_with_its_usage(
    http: aiohttp.ClientSession, db: Path, stream: bool
) -> None:
    async with stack(FakeWorker(), usage_db=db, api_keys=("key-a",)) as s:
        body = BODY | {"n": 2, "max_tokens": 4, "stream": stream}
        assert await ask(http, s, "/v1/chat/completions", body) == 200
    [row] = rows(db)
    assert row.pop("time").endswith("Z")
    assert row.pop("gateway")
    assert 0 < row.pop("duration_s") < 5
    assert row.pop("key").startswith("key-")
    assert row == {
        "request_id": "mine", "route": "/v1/chat/completions", "model": MODEL, "outcome": "length",
        "prompt_tokens": 7, "cached_tokens": 3, "completion_tokens": 8, "reasoning_tokens": 0,
        "attempts": 1,
    }  # fmt: skip


async def test_prompts_of_one_request_are_one_row(http: aiohttp.ClientSession, db: Path) -> None:
    async with stack(FakeWorker(), usage_db=db) as s:
        body = {"model": MODEL, "prompt": ["a", "b", "c"]}
        assert await ask(http, s, "/v1/completions", body) == 200
    [row] = rows(db)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (21, 3 * len(WORDS))
    assert (row["key"], row["outcome"], row["attempts"]) == ("-", "stop", 1)


async def test_an_answer_that_went_on_elsewhere_counts_once(
    http: aiohttp.ClientSession, db: Path
) -> None:
    workers = [FakeWorker("w1", die_after=4), FakeWorker("w2")]
    async with stack(*workers, usage_db=db, routing="least_loaded") as s:
        for _ in range(12):
            assert await ask(http, s, "/v1/chat/completions", BODY | {"stream": True}) == 200
    found = rows(db)
    assert [(row["prompt_tokens"], row["completion_tokens"]) for row in found] == [
        (7, len(WORDS))
    ] * 12
    assert 2 in {row["attempts"] for row in found}


@pytest.mark.parametrize("stream", [False, True])
async def test_what_fails_behind_its_start_counts_what_came(
    http: aiohttp.ClientSession, db: Path, stream: bool
) -> None:
    async with stack(FakeWorker(fail_after=(3, BAD_LOGITS)), usage_db=db) as s:
        status = await ask(http, s, "/v1/chat/completions", BODY | {"stream": stream})
        assert status == (200 if stream else 500)
    [row] = rows(db)
    assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("bad_logits", 7, 2)


async def test_what_the_client_leaves_counts_what_came(
    http: aiohttp.ClientSession, db: Path
) -> None:
    async with stack(FakeWorker(hang_after=4), usage_db=db) as s:
        for stream in (True, False):
            asked = asyncio.create_task(
                ask(http, s, "/v1/chat/completions", BODY | {"stream": stream})
            )
            await until(lambda: s.workers[0].running)
            await asyncio.sleep(0.1)
            asked.cancel()
            await until(lambda: not s.workers[0].running)
    assert [
        (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) for row in rows(db)
    ] == [("aborted", 7, 3)] * 2


async def test_what_is_refused_and_what_costs_no_tokens_has_no_row(
    http: aiohttp.ClientSession, db: Path
) -> None:
    refusing = FakeWorker(refuse=TriremeError("context_length_exceeded", "long", param="messages"))
    async with stack(refusing, usage_db=db) as s:
        assert await ask(http, s, "/v1/chat/completions", BODY) == 400
        assert await ask(http, s, "/v1/chat/completions", BODY | {"model": "x"}) == 404
        assert await ask(http, s, "/v1/embeddings", {"model": MODEL, "input": "a"}) == 400
        assert await ask(http, s, "/v1/messages/count_tokens", BODY) == 200
    assert rows(db) == []


async def test_embeddings_have_a_row(http: aiohttp.ClientSession, db: Path) -> None:
    async with stack(FakeWorker(), usage_db=db) as s:
        assert await ask(http, s, "/v1/embeddings", {"model": MODEL, "input": ["a", "b"]}) == 200
        path = f"/v1/engines/{MODEL}/embeddings"
        assert await ask(http, s, path, {"input": "a"}) == 200
    assert [(row["route"], row["outcome"], row["prompt_tokens"]) for row in rows(db)] == [
        ("/v1/embeddings", "ok", 6),
        ("/v1/engines/{model:path}/embeddings", "ok", 3),
    ]


class SlowWorker(FakeWorker):
    """Takes its time over vectors."""

    async def _embed(self, request: Any) -> Any:
        self.running += 1
        try:
            await asyncio.sleep(5)
        finally:
            self.running -= 1
        return await super()._embed(request)


async def test_vectors_that_nobody_waits_for_cost_what_they_may_need(
    http: aiohttp.ClientSession, db: Path
) -> None:
    body = {"model": MODEL, "input": ["x" * 396]}
    async with stack(SlowWorker(), usage_db=db, limit_tokens=1000) as s:
        asked = asyncio.create_task(ask(http, s, "/v1/embeddings", body))
        await until(lambda: s.workers[0].running)
        asked.cancel()
        await until(lambda: not s.workers[0].running)
        async with http.post(
            s.url + "/v1/embeddings", json=body, headers={"x-request-timeout-ms": "100"}
        ) as answer:
            assert answer.status == 504
        async with http.get(s.url + "/v1/models") as answer:
            left = int(answer.headers["x-ratelimit-remaining-tokens"])
    assert 800 <= left < 850
    assert [(row["outcome"], row["prompt_tokens"]) for row in rows(db)] == [
        ("aborted", 100),
        ("deadline_exceeded", 100),
    ]


async def test_vectors_that_failed_cost_nothing(http: aiohttp.ClientSession, db: Path) -> None:
    failing = FakeWorker(refuse=TriremeError("internal_error", "no"))
    async with stack(failing, usage_db=db, limit_tokens=1000) as s:
        assert await ask(http, s, "/v1/embeddings", {"model": MODEL, "input": "a" * 400}) == 500
        async with http.get(s.url + "/v1/models") as answer:
            assert answer.headers["x-ratelimit-remaining-tokens"] == "1000"
    assert rows(db) == []


async def test_what_is_left_of_a_worker_of_fastchats_wire_counts_what_it_has_told(
    http: aiohttp.ClientSession, db: Path
) -> None:
    texts = tuple("word " * number for number in range(1, 60))
    body = BODY | {"stream": True, "max_tokens": 60}
    async with (
        serving(FakeFastChatWorker(hang=True, texts=texts).app()) as address,
        stack(usage_db=db) as s,
    ):
        s.controller.set(fastchat_record(address))
        await until(lambda: s.app.state.gateway.view.snapshot.workers)
        async with http.post(s.url + "/v1/chat/completions", json=body) as answer:
            read = b""
            while read.count(b"word ") < 59:
                read += await answer.content.readany()
            answer.close()
    [row] = rows(db)
    assert (row["outcome"], row["completion_tokens"]) == ("aborted", 59)
    assert row["prompt_tokens"] > 0


async def test_a_count_that_no_answer_has_is_not_written(
    http: aiohttp.ClientSession, db: Path
) -> None:
    def boasts(request: Any, id_: str) -> list[Event]:
        return [*scripted(request, id_)[:-1], Done(7, 2**70)]

    worker = FakeWorker()
    async with stack(worker, usage_db=db) as s:
        worker.script = boasts
        assert await ask(http, s, "/v1/chat/completions", BODY) == 502
        worker.script = scripted
        assert await ask(http, s, "/v1/chat/completions", BODY) == 200
    assert {row["completion_tokens"] for row in rows(db)} == {len(WORDS)}
