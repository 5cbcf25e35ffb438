"""The usage ledger and the workers' counters tell the same, over real processes."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack.processes import Stack, Tier, running

MODEL = "sim"
KEYS = """
[[keys]]
name = "alice"
key = "key-alice"

[[keys]]
name = "bob"
key = "key-bob"
"""
PROMPT, GENERATED = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "count"}]}
COMPLETION: dict[str, Any] = {"model": MODEL, "prompt": ["one prompt", "and another"]}
MIXED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"n": 2, "stream": True, "max_tokens": 9}),
    ("/v1/chat/completions", CHAT | {"stop": ["e"], "stream": True}),
    ("/v1/chat/completions", CHAT | {"stop": [" a", "o"], "n": 2}),
    ("/v1/completions", COMPLETION | {"n": 2, "max_tokens": 5}),
    ("/v1/completions", COMPLETION | {"best_of": 3, "max_tokens": 4}),
    ("/v1/completions", COMPLETION | {"stream": True}),
    ("/v1/responses", {"model": MODEL, "input": "hello", "store": False}),
    ("/v1/messages", CHAT | {"max_tokens": 7, "stream": True}),
    ("/v1/embeddings", {"model": MODEL, "input": ["a text", "another one"]}),
]


class Ledgered:
    """A stack behind a gateway that keeps a ledger of its own."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        keys = folder / "keys.toml"
        keys.write_text(KEYS)
        self.stack, self.db = stack, folder / "usage.db"
        self._num_before = 0
        self._before: dict[tuple[Tier, str], int] = {}
        self.gateway = stack.add_gateway(
            "--api-keys-file",
            str(keys),
            "--usage-db",
            str(self.db),
            "--processes",
            "2",
            "--stall-timeout-s",
            "2",
        )

    def post(self, path: str, body: dict[str, Any], key: str = "alice") -> int:
        headers = {"Authorization": f"Bearer key-{key}"}
        return httpx.post(
            self.gateway.url + path, json=body, headers=headers, timeout=60
        ).status_code

    def leave(self, number: int) -> None:
        """Read some tokens of an answer and go away."""
        headers = {"Authorization": "Bearer key-bob"}
        body = CHAT | {"stream": True, "max_tokens": 2000, "ignore_eos": True, "seed": number}
        with httpx.stream(
            "POST", self.gateway.url + "/v1/chat/completions", json=body, headers=headers
        ) as answer:
            lines = answer.iter_lines()
            for _ in range(2 * (3 + number)):
                next(lines)

    def begin(self) -> None:
        """Count rows and tokens from here on."""
        self._num_before, self._before = 0, {}
        if self.db.exists():
            self._num_before = len(self.rows())
        self._before = {
            (worker, name): self.counted(name, worker)
            for worker in self.stack.workers
            for name in (PROMPT, GENERATED)
        }

    def rows(self) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.db)) as ledger:
            ledger.row_factory = sqlite3.Row
            found = ledger.execute("SELECT * FROM requests ORDER BY rowid").fetchall()
        return [dict(row) for row in found[self._num_before :]]

    def wait_rows(self, count: int) -> list[dict[str, Any]]:
        wait(lambda: len(self.rows()) >= count)
        rows = self.rows()
        assert len(rows) == count
        return rows

    def counted(self, name: str, *workers: Tier) -> int:
        """What these workers, or all, have counted."""
        return sum(
            int(worker.metric(name)) - self._before.get((worker, name), 0)
            for worker in workers or self.stack.workers
        )


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def total(rows: list[dict[str, Any]], column: str) -> int:
    return sum(row[column] for row in rows)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledgered]:
    folder = tmp_path_factory.mktemp("accounting")
    with running(folder) as stack:
        for _ in range(2):
            stack.add_worker("--engine", "sim", "--model-names", MODEL, "--sim-itl-ms", "2")
        made = Ledgered(stack, folder)
        stack.wait_serving()
        made.gateway.wait_ready()
        yield made


@pytest.fixture
def ledgered(served: Ledgered) -> Ledgered:
    served.begin()
    return served


def test_the_ledgers_sums_are_the_workers_counters(ledgered: Ledgered) -> None:
    mixed = [(*MIXED[at % len(MIXED)], "alice" if at % 3 else "bob") for at in range(50)]
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda one: ledgered.post(*one), mixed))
    assert found == [200] * 50
    rows = ledgered.wait_rows(50)
    assert total(rows, "prompt_tokens") == ledgered.counted(PROMPT)
    assert total(rows, "completion_tokens") == ledgered.counted(GENERATED)
    assert {row["key"] for row in rows} == {"alice", "bob"}
    assert {row["outcome"] for row in rows} == {"stop", "length", "ok"}
    assert {row["route"] for row in rows} == {path for path, _ in MIXED}
    assert {row["attempts"] for row in rows} == {1}
    assert len({row["gateway"] for row in rows}) == 2
    assert ledgered.post("/v1/chat/completions", CHAT | {"temperature": 9}) == 400
    assert ledgered.post("/v1/chat/completions", CHAT | {"max_tokens": 10**6}) == 400

    before = ledgered.counted(GENERATED)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ledgered.leave, range(6)))
    left = ledgered.wait_rows(56)[50:]
    wait(lambda: ledgered.counted("vllm:num_requests_running") == 0)
    assert {row["outcome"] for row in left} == {"aborted"}
    assert total(rows + left, "prompt_tokens") == ledgered.counted(PROMPT)
    made, delivered = ledgered.counted(GENERATED) - before, total(left, "completion_tokens")
    assert delivered <= made
    assert made - delivered <= 6 * 8, "what was on its way when the client had gone"
    # of the events that number n has read the first has no token, each other at least one
    read = [2 + number for number in range(6)]
    paid = sorted(row["completion_tokens"] for row in left)
    assert all(tokens >= least for tokens, least in zip(paid, read, strict=True)), paid


def test_who_leaves_pays_for_the_best_of_several_too(ledgered: Ledgered) -> None:
    """No token of it is sent before the end."""
    body = {"model": MODEL, "prompt": "a", "best_of": 4, "max_tokens": 4000, "ignore_eos": True}
    headers = {"Authorization": "Bearer key-alice"}
    url = ledgered.gateway.url + "/v1/completions"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=body, headers=headers, timeout=2.5)
    [row] = ledgered.wait_rows(1)
    wait(lambda: ledgered.counted("vllm:num_requests_running") == 0)
    made = ledgered.counted(GENERATED)
    assert made / 4 < row["completion_tokens"] <= made
    assert (row["outcome"], row["prompt_tokens"]) == ("aborted", ledgered.counted(PROMPT))


def test_a_resumed_answer_counts_once(ledgered: Ledgered) -> None:
    """The worker that was lost is only stopped, so that its counters can be looked at later."""
    first, second = ledgered.stack.workers
    body = CHAT | {"stream": True, "max_tokens": 2000, "ignore_eos": True}
    body |= {"stream_options": {"include_usage": True}}
    headers = {"Authorization": "Bearer key-alice"}
    url = ledgered.gateway.url + "/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
        lines = answer.iter_lines()
        for _ in range(40):
            next(lines)
        busy = first if first.metric("vllm:num_requests_running") else second
        other = second if busy is first else first
        busy.process.send_signal(signal.SIGSTOP)
        rest = [line[6:] for line in lines if line.startswith("data: {")]
    usage = json.loads(rest[-1])["usage"]
    [row] = ledgered.wait_rows(1)
    busy.process.send_signal(signal.SIGCONT)
    assert (row["completion_tokens"], row["prompt_tokens"]) == (2000, usage["prompt_tokens"])
    assert (row["attempts"], row["outcome"]) == (2, "length")
    wait(lambda: busy.metric("vllm:num_requests_running") == 0)
    assert ledgered.counted(PROMPT) == row["prompt_tokens"]
    went_on = ledgered.counted(GENERATED, other)
    assert 2000 - ledgered.counted(GENERATED, busy) <= went_on < 2000


def test_what_a_gateway_has_counted_is_written_when_it_stops(ledgered: Ledgered) -> None:
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda one: ledgered.post(*one), MIXED * 2))
    assert found == [200] * 20
    assert ledgered.gateway.stop() == 0
    assert len(ledgered.rows()) == 20
