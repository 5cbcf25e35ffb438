"""Workers that die, hang and refuse: what the client sees."""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import replace
from types import FrameType
from typing import Any

import aiohttp
import openai
import orjson
import pytest

from protocol.errors import TriremeError
from protocol.fleet import Load
from protocol.generation import Started
from tests.gateway.fakes import MODEL, WORDS, FakeWorker, Stack, scripted, stack, until

TEXT = "".join(WORDS)
HELLO: list[Any] = [{"role": "user", "content": "hi"}]
BODY: dict[str, Any] = {"model": MODEL, "messages": HELLO}
FAULTY = TriremeError("invalid_value", "no", param="temperature")
OVERLOADED = TriremeError("overloaded", "full", retry_after_s=2.5)


async def ask(http: aiohttp.ClientSession, s: Stack, **fields: Any) -> tuple[int, Any]:
    """(status, answer); of a stream, its events."""
    async with http.post(s.url + "/v1/chat/completions", json=BODY | fields) as answer:
        raw = await answer.read()
        if not fields.get("stream") or answer.status != 200:
            return answer.status, orjson.loads(raw)
        lines = [line[6:] for line in raw.split(b"\n\n") if line]
        return 200, [line if line == b"[DONE]" else orjson.loads(line) for line in lines]


def text_of(events: list[Any]) -> str:
    chunks = [event for event in events if event != b"[DONE]" and "choices" in event]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


@pytest.mark.parametrize("die_after", [0, 1], ids=["before Started", "before the first token"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_death_before_the_first_token_is_not_noticed(
    http: aiohttp.ClientSession, die_after: int, stream: bool
) -> None:
    dying = [FakeWorker("w1", die_after=die_after), FakeWorker("w2")]
    async with stack(*dying, routing="least_loaded") as s:
        for _ in range(8):
            status, answer = await ask(http, s, stream=stream)
            assert status == 200
            if stream:
                assert text_of(answer) == TEXT
                assert answer[-1] == b"[DONE]"
                roles = [e for e in answer[:-1] if e["choices"][0]["delta"].get("role")]
                assert len(roles) == 1, "the role is said once"
            else:
                assert answer["choices"][0]["message"]["content"] == TEXT
        assert len(s.workers[1].requests) == 8


async def test_a_worker_that_is_not_there_costs_little(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker("w1"), FakeWorker("w2")) as s:
        gone = s.controller.workers[0].model_copy(update={"address": "http://127.0.0.1:9"})
        s.controller.set(gone, s.controller.workers[1])
        view = s.app.state.gateway.view
        await until(lambda: view.snapshot.workers["w1"].address == gone.address)
        begun = time.monotonic()
        for _ in range(10):
            assert (await ask(http, s))[0] == 200
        assert time.monotonic() - begun < 5  # a connection that is waited for takes 1 s
        assert len(s.workers[1].requests) == 10


@pytest.mark.parametrize("waits", [(2.5, 40.0), (40.0, 2.5), (None, 2.5)], ids=str)
async def test_a_full_cluster_has_room_when_the_first_of_the_tried_has(
    http: aiohttp.ClientSession, waits: tuple[float | None, float | None]
) -> None:
    workers = [
        FakeWorker(f"w{at}", refuse=TriremeError("overloaded", "full", retry_after_s=wait_s))
        for at, wait_s in enumerate(waits)
    ]
    async with stack(*workers) as s:
        for _ in range(4):  # whichever is asked first
            async with http.post(s.url + "/v1/chat/completions", json=BODY) as answer:
                assert answer.status == 503
                assert answer.headers["Retry-After"] == "3"
                assert "x-should-retry" not in answer.headers


@pytest.mark.parametrize(
    "code",
    [
        "overloaded",
        "draining",
        "wrong_instance",
        "engine_dead",
        "engine_unavailable",
        "out_of_memory",
    ],
)
async def test_a_refusal_that_another_worker_may_not_share_goes_to_it(
    http: aiohttp.ClientSession, code: str
) -> None:
    refusing = FakeWorker("w1", refuse=TriremeError(code, "no"))
    async with stack(refusing, FakeWorker("w2")) as s:
        for _ in range(6):
            assert (await ask(http, s))[0] == 200


async def test_when_all_are_full_the_client_is_told_when_to_come_back(
    http: aiohttp.ClientSession,
) -> None:
    async with stack(*(FakeWorker(f"w{i}", refuse=OVERLOADED) for i in range(5))) as s:
        async with http.post(s.url + "/v1/chat/completions", json=BODY) as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "3"
            assert (await answer.json())["error"]["code"] == "overloaded"
        assert sum(len(w.requests) for w in s.workers) == 3, "two retries at most"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deterministic_failure_is_tried_once(
    http: aiohttp.ClientSession, stream: bool
) -> None:
    error = TriremeError("context_length_exceeded", "too long", param="messages")
    async with stack(*(FakeWorker(f"w{i}", refuse=error) for i in range(3))) as s:
        status, answer = await ask(http, s, stream=stream)
        assert status == 400
        assert answer["error_code"] == 40303
        assert answer["error"]["param"] == "messages"
        assert sum(len(w.requests) for w in s.workers) == 1


@pytest.mark.parametrize("die_after", range(2, 8))
@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 2, "logprobs": True}])
async def test_after_a_death_in_the_middle_another_worker_goes_on(
    http: aiohttp.ClientSession, die_after: int, fields: dict[str, Any]
) -> None:
    async with stack(FakeWorker("w1", die_after=die_after), FakeWorker("w2")) as s:
        while not s.workers[0].requests:
            status, answer = await ask(http, s, **fields)
            assert status == 200
            if fields.get("stream"):
                assert text_of(answer) == TEXT
                assert answer[-1] == b"[DONE]"
                assert len({chunk["id"] for chunk in answer[:-1]}) == 1
            else:
                for choice in answer["choices"]:
                    assert choice["message"]["content"] == TEXT
                    assert choice["finish_reason"] == "stop"
                    if fields:
                        assert len(choice["logprobs"]["content"]) == len(WORDS)
                assert answer["usage"]["completion_tokens"] == len(WORDS) * fields.get("n", 1)
        last = s.workers[1].requests[-1]
        assert last.resume is not None
        assert sum(len(choice.ids) for choice in last.resume) == die_after - 1
        async with http.get(s.url + "/metrics") as shown:
            assert (
                'gateway_resumed_total{model="demo",reason="worker_lost"} 1' in await shown.text()
            )


async def test_an_answer_goes_on_however_many_workers_are_not_there_any_more(
    http: aiohttp.ClientSession,
) -> None:
    """After the first token more than two others may refuse, as long as one is left."""
    gone = TriremeError("wrong_instance", "Another worker process serves this address now.")
    dying = FakeWorker("w0", hang_after=3)
    others = [FakeWorker(f"w{i}", refuse=gone) for i in range(1, 5)]
    async with stack(dying, *others, FakeWorker("w5"), routing="least_loaded") as s:
        first, *more, last = s.controller.workers
        busy = last.model_copy(update={"load": Load(capacity=8, running=50)})  # asked after all
        view = s.app.state.gateway.view
        s.controller.set(first, left=tuple(one.instance_id for one in (*more, last)))
        await until(lambda: len(view.snapshot.workers) == 1)
        asked = asyncio.create_task(ask(http, s, stream=True))
        await until(lambda: dying.running)
        s.controller.set(first, *more, busy)
        await until(lambda: len(view.snapshot.workers) == 6)
        await asyncio.sleep(0.05)  # what was sent has arrived
        dying.killed.set()
        status, events = await asked
        assert (status, text_of(events)) == (200, TEXT)
        assert events[-1] == b"[DONE]"
        assert [len(one.requests) for one in s.workers] == [1] * 6


async def test_another_digest_cannot_go_on(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker("w1", die_after=3), FakeWorker("w2")) as s:
        first, second = s.controller.workers
        model = second.models[0].model_copy(update={"digest": "e" * 64})
        s.controller.set(first, second.model_copy(update={"models": (model,)}))
        view = s.app.state.gateway.view
        await until(lambda: view.snapshot.workers["w2"].models[0].digest == "e" * 64)
        while not s.workers[0].requests:
            status, answer = await ask(http, s)
        assert (status, answer["error"]["code"]) == (502, "worker_lost")
        assert all(one.resume is None for one in s.workers[1].requests)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_death_in_the_middle_ends_the_request_where_nobody_can_go_on(
    http: aiohttp.ClientSession, stream: bool
) -> None:
    async with stack(FakeWorker("w1", die_after=3)) as s:
        status, answer = await ask(http, s, stream=stream)
        if not stream:
            assert (status, answer["error"]["code"]) == (502, "worker_lost")
            return
        assert status == 200
        assert text_of(answer) == "".join(WORDS[:2])
        assert answer[-1]["error"]["code"] == "worker_lost"
        assert answer[-1]["error_code"] == 50006
        finishes = [e["choices"][0]["finish_reason"] for e in answer[:-1]]
        assert finishes == [None] * len(finishes)


async def test_openais_client_raises_on_a_broken_stream() -> None:
    async with (
        stack(FakeWorker("w1", die_after=3)) as s,
        openai.AsyncOpenAI(base_url=s.url + "/v1", api_key="x", max_retries=0) as api,
    ):
        stream = await api.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="middle of the answer"):
            _ = [chunk async for chunk in stream]


async def test_a_request_that_two_workers_died_of_is_not_tried_again(
    http: aiohttp.ClientSession,
) -> None:
    async with stack(*(FakeWorker(f"w{i}", die_after=1) for i in range(4))) as s:
        status, answer = await ask(http, s)
        assert (status, answer["error"]["code"]) == (500, "request_quarantined")
        assert sum(len(w.requests) for w in s.workers) == 2


@pytest.mark.parametrize("fail_after", [1, 3], ids=["in its prefill", "in mid-stream"])
async def test_a_request_that_two_engines_died_of_is_not_tried_again(
    http: aiohttp.ClientSession, fail_after: int
) -> None:
    """The third worker stays untouched."""
    gone = TriremeError("engine_dead", "the engine made no progress")
    dying = [FakeWorker(f"w{i}", fail_after=(fail_after, gone)) for i in range(3)]
    async with stack(*dying) as s:
        status, answer = await ask(http, s)
        assert (status, answer["error"]["code"]) == (500, "request_quarantined")
        assert sorted(len(w.requests) for w in s.workers) == [0, 1, 1]


async def test_engines_that_were_dead_before_do_not_count_against_a_request(
    http: aiohttp.ClientSession,
) -> None:
    refusal = TriremeError("engine_unavailable", "it is being started again")
    refusing = [FakeWorker(f"w{i}", refuse=refusal) for i in range(2)]
    async with stack(*refusing, FakeWorker("w2")) as s:
        for _ in range(4):
            assert (await ask(http, s))[0] == 200


async def test_a_failure_event_before_the_first_token_goes_elsewhere(
    http: aiohttp.ClientSession,
) -> None:
    failing = FakeWorker("w1", fail_after=(1, TriremeError("engine_dead", "gone")))
    async with stack(failing, FakeWorker("w2")) as s:
        for _ in range(6):
            status, answer = await ask(http, s)
            assert status == 200
            assert answer["choices"][0]["message"]["content"] == TEXT


async def test_a_failure_event_in_a_stream_keeps_its_code(http: aiohttp.ClientSession) -> None:
    failing = FakeWorker("w1", fail_after=(2, TriremeError("bad_logits", "NaN")))
    async with stack(failing) as s:
        _, events = await ask(http, s, stream=True)
        assert events[-1]["error"]["code"] == "bad_logits"


async def test_a_worker_that_admits_nothing_is_left(http: aiohttp.ClientSession) -> None:
    hanging = FakeWorker("w1", hang_after=0)
    async with stack(hanging, FakeWorker("w2"), first_event_timeout_s=0.2) as s:
        results = await asyncio.gather(*(ask(http, s) for _ in range(4)))
        assert [status for status, _ in results] == [200] * 4


async def test_everything_on_a_worker_that_is_killed_goes_elsewhere(
    http: aiohttp.ClientSession,
) -> None:
    doomed = FakeWorker("w1", hang_after=1)
    async with stack(doomed, FakeWorker("w2"), FakeWorker("w3")) as s:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(http, s, stream=i % 2 == 0)) for i in range(90)]
            await until(lambda: sum(len(w.requests) for w in s.workers) == 90)
            assert doomed.running >= 20
            doomed.killed.set()
        assert [task.result()[0] for task in asked] == [200] * 90
        texts = [
            text_of(answer)
            if isinstance(answer, list)
            else answer["choices"][0]["message"]["content"]
            for _, answer in (task.result() for task in asked)
        ]
        assert set(texts) == {TEXT}


async def test_a_long_prefix_stays_with_its_worker(http: aiohttp.ClientSession) -> None:
    async with stack(*(FakeWorker(f"w{i}") for i in range(4))) as s:
        system = {"role": "system", "content": "Be brief. " * 200}
        for i in range(10):
            turns = [system, {"role": "user", "content": str(i)}]
            assert (await ask(http, s, messages=turns))[0] == 200
        assert sorted(len(w.requests) for w in s.workers) == [0, 0, 0, 10]


@pytest.mark.parametrize("hang_after", [0, 1], ids=["unadmitted", "queued"])
async def test_a_worker_that_leaves_the_fleet_while_silent_is_left(
    http: aiohttp.ClientSession, hang_after: int
) -> None:
    hanging = FakeWorker("w1", hang_after=hang_after)
    async with stack(hanging) as s:
        task = asyncio.create_task(ask(http, s))
        await until(lambda: hanging.requests)
        async with _another(FakeWorker("w2"), s):
            status, answer = await task
        assert (status, answer["choices"][0]["message"]["content"]) == (200, TEXT)


def _another(worker: FakeWorker, s: Stack) -> Any:
    """The fleet is now this worker alone; the others have left."""
    import contextlib

    from tests.gateway.fakes import record, serving

    @contextlib.asynccontextmanager
    async def replaced() -> Any:
        async with serving(worker.app()) as address:
            left = tuple(w.instance_id for w in s.workers)
            s.controller.set(record(worker.instance_id, address), left=left)
            yield

    return replaced()


async def test_a_stream_that_stalls_is_ended(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker("w1", hang_after=3), stall_timeout_s=0.2) as s:
        _, events = await ask(http, s, stream=True)
        assert events[-1]["error"]["code"] == "worker_lost"


@pytest.mark.parametrize("hang_after", [0, 1, 3])
async def test_the_deadline_is_kept(http: aiohttp.ClientSession, hang_after: int) -> None:
    worker = FakeWorker("w1", hang_after=hang_after)
    async with stack(worker, request_timeout_s=0.3, first_event_timeout_s=5) as s:
        begun = time.monotonic()
        status, answer = await ask(http, s)
        assert time.monotonic() - begun < 4  # the first event's own limit is 5 s
        assert status == 504
        assert answer["error"]["code"] == "deadline_exceeded"
        await until(lambda: worker.running == 0)


async def test_requests_go_on_with_every_controller_dead(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker()) as s:
        s.controller.token = "now it refuses everybody"
        s.controller.set()
        await until(lambda: s.app.state.gateway.view.snapshot.stale)
        assert (await ask(http, s))[0] == 200
        async with http.get(s.url + "/readyz") as answer:
            assert answer.status == 200


async def test_with_every_controller_dead_load_is_what_the_gateway_has_there_itself(
    http: aiohttp.ClientSession,
) -> None:
    """What was reported last is no measure: for hours nobody would use a worker that was busy."""
    async with stack(FakeWorker("w1", pause_s=0.1), FakeWorker("w2", pause_s=0.1)) as s:
        busy = s.controller.workers[0].model_copy(update={"load": Load(running=200, capacity=256)})
        s.controller.set(busy, s.controller.workers[1])
        view = s.app.state.gateway.view
        await until(lambda: view.snapshot.workers["w1"].load.running == 200)
        await asyncio.gather(*(ask(http, s) for _ in range(6)))
        assert [len(worker.requests) for worker in s.workers] == [0, 6]
        s.controller.token = "now it refuses everybody"
        s.controller.set()
        await until(lambda: view.snapshot.stale)
        await asyncio.gather(*(ask(http, s) for _ in range(12)))
        assert [len(worker.requests) for worker in s.workers] == [6, 12]


async def test_an_answer_with_a_gap_is_not_passed_on(http: aiohttp.ClientSession) -> None:
    worker = FakeWorker(script=lambda request, name: [
        event for i, event in enumerate(scripted(request, name)) if i != 3
    ])  # fmt: skip
    async with stack(worker) as s:
        _, events = await ask(http, s, stream=True)
        assert text_of(events) == "".join(WORDS[:2])
        assert events[-1]["error"]["code"] == "worker_lost"


@pytest.mark.parametrize(
    "garbage", [b"not json\n", b'{"kind":"what"}\n', b"", b'{"kind":"delta"}\n']
)
async def test_a_worker_that_talks_nonsense_is_left(
    http: aiohttp.ClientSession, garbage: bytes
) -> None:
    from aiohttp import web

    from tests.gateway.fakes import record, serving

    async def nonsense(_request: web.Request) -> web.Response:
        return web.Response(body=garbage)

    app = web.Application()
    app.router.add_post("/native/generate", nonsense)
    async with stack(FakeWorker("w2")) as s, serving(app) as address:
        s.controller.set(record("w1", address), *s.controller.workers)
        await until(lambda: "w1" in s.app.state.gateway.view.snapshot.workers)
        for _ in range(6):
            assert (await ask(http, s))[0] == 200


@pytest.mark.parametrize("sent", [1, 3], ids=["before the first token", "in the middle"])
async def test_a_lone_worker_goes_on_when_its_engine_is_back(
    http: aiohttp.ClientSession, sent: int
) -> None:
    """It says so by its record; until then nobody is asked."""
    worker = FakeWorker("w1", fail_after=(sent, TriremeError("engine_dead", "killed")))
    async with stack(worker) as s:
        asked = asyncio.create_task(ask(http, s, stream=True))
        await until(lambda: worker.requests)
        [ready] = s.controller.workers
        s.controller.set(ready.model_copy(update={"state": "failed"}))
        worker.fail_after = None
        await asyncio.sleep(0.1)
        assert len(worker.requests) == 1
        s.controller.set(ready.model_copy(update={"engine_starts": 2}))
        status, events = await asked
        assert (status, text_of(events), events[-1]) == (200, TEXT, b"[DONE]")
        assert len(worker.requests) == 2


async def test_the_wait_for_an_engine_is_bounded(http: aiohttp.ClientSession) -> None:
    worker = FakeWorker("w1", fail_after=(3, TriremeError("engine_dead", "killed")))
    async with stack(worker, restart_wait_s=0.2) as s:
        begun = time.monotonic()
        _, events = await ask(http, s, stream=True)
        assert events[-1]["error"]["code"] == "worker_lost"
        assert 0.2 < time.monotonic() - begun < 10  # by default 30 s
        assert len(worker.requests) == 1


async def test_the_wait_for_an_engine_ends_with_the_deadline(http: aiohttp.ClientSession) -> None:
    worker = FakeWorker("w1", fail_after=(1, TriremeError("engine_dead", "killed")))
    async with stack(worker, request_timeout_s=0.2) as s:
        status, answer = await ask(http, s)
        assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("sent", [1, 3], ids=["queued", "in the middle"])
async def test_a_worker_that_falls_silent_is_left(http: aiohttp.ClientSession, sent: int) -> None:
    """As behind a cut cable: no reset, no heartbeat missed at the controller yet."""
    async with stack(
        FakeWorker("w1", hang_after=sent), FakeWorker("w2"), silence_timeout_s=0.3
    ) as s:
        while not s.workers[0].requests:
            status, events = await ask(http, s, stream=True)
        assert (status, text_of(events), events[-1]) == (200, TEXT, b"[DONE]")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stream_that_draining_workers_hand_over_is_no_failure(
    http: aiohttp.ClientSession, stream: bool
) -> None:
    """However many drain one after the other: no quarantine, no end of retries, no breaker."""
    draining = TriremeError("draining", "This worker is shutting down.")
    leaving = [FakeWorker(f"w{i}", fail_after=(2, draining)) for i in range(4)]
    async with stack(*leaving, FakeWorker("w9"), routing="least_loaded") as s:
        *first, last = s.controller.workers
        s.controller.set(*first, last.model_copy(update={"load": Load(waiting_tokens=10_000)}))
        view = s.app.state.gateway.view
        await until(lambda: view.snapshot.workers["w9"].load.waiting_tokens)
        for _ in range(4):
            status, answer = await ask(http, s, stream=stream)
            assert status == 200
            text = text_of(answer) if stream else answer["choices"][0]["message"]["content"]
            assert text == TEXT
        assert [len(worker.requests) for worker in s.workers] == [4] * 5
        async with http.get(s.url + "/metrics") as shown:
            lines = (await shown.text()).splitlines()
        states = [line for line in lines if line.startswith("trireme_gateway_worker_breaker_state")]
        assert states
        assert all(line.endswith(" 0.0") for line in states)


async def test_all_streams_of_a_worker_that_falls_silent_go_on(http: aiohttp.ClientSession) -> None:
    """They have their places: the budget of retries after overloads is not theirs."""
    silent = FakeWorker("w1", hang_after=3)
    async with stack(silent, FakeWorker("w2"), silence_timeout_s=0.3) as s:
        answers = await asyncio.gather(*(ask(http, s, stream=True) for _ in range(120)))
        assert len(silent.requests) > 40
        assert {(text_of(events), events[-1]) for _, events in answers} == {(TEXT, b"[DONE]")}


async def test_a_request_that_was_admitted_says_so_to_the_next_worker(
    http: aiohttp.ClientSession,
) -> None:
    async with stack(FakeWorker("w1", die_after=1), FakeWorker("w2", die_after=0)) as s:
        await ask(http, s)
        asked = [request.admitted for worker in s.workers for request in worker.requests]
        assert sorted(asked) in ([False, True], [False, False])
        while not any(asked):
            await ask(http, s)
            asked = [request.admitted for worker in s.workers for request in worker.requests]


async def test_no_room_is_said_at_once_beside_a_worker_that_has_failed(
    http: aiohttp.ClientSession,
) -> None:
    async with stack(FakeWorker("w1"), FakeWorker("w2", refuse=OVERLOADED)) as s:
        first, second = s.controller.workers
        s.controller.set(first.model_copy(update={"state": "failed"}), second)
        view = s.app.state.gateway.view
        await until(lambda: view.snapshot.workers["w1"].state == "failed")
        begun = time.monotonic()
        statuses = [(await ask(http, s))[0] for _ in range(10)]
        assert statuses == [503] * 10
        assert time.monotonic() - begun < 10  # one that is waited for takes 30 s


async def test_until_something_is_told_the_last_worker_speaks_for_the_answer(
    http: aiohttp.ClientSession,
) -> None:
    async with stack(FakeWorker("w1", die_after=1), FakeWorker("w2")) as s:
        s.workers[1].script = lambda request, name: [
            replace(event, digest="e" * 64, seed=222) if isinstance(event, Started) else event
            for event in scripted(request, name)
        ]
        while not s.workers[0].requests:
            _, events = await ask(http, s, stream=True)
        chunks = events[:-1]
        assert text_of(events) == TEXT
        assert sum("role" in one["choices"][0]["delta"] for one in chunks) == 1
        assert chunks[-1]["system_fingerprint"] == "fp_" + "e" * 12


async def test_a_lone_worker_that_was_reborn_is_no_421(http: aiohttp.ClientSession) -> None:
    reborn = FakeWorker("w1", refuse=TriremeError("wrong_instance", "another"))
    async with (
        stack(reborn) as s,
        http.post(s.url + "/v1/chat/completions", json=BODY) as answer,
    ):
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert (await answer.json())["error"]["code"] == "no_worker"


@pytest.mark.parametrize(
    "fault",
    [
        {"refuse": OVERLOADED},
        {"refuse": FAULTY},
        {"die_after": 0},
        {"die_after": 3},
        {"fail_after": (2, FAULTY)},
    ],
    ids=["no room", "refused", "died", "died in the middle", "failed in the middle"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_fails_leaves_nothing_to_the_garbage_collector(
    http: aiohttp.ClientSession, fault: dict[str, Any], stream: bool
) -> None:
    """Its body may have megabytes, and collections are rare."""
    async with stack(FakeWorker("w1", **fault), FakeWorker("w2", **fault)) as s:
        await ask(http, s, stream=stream)
        await until(lambda: s.app.state.gateway.dispatcher.in_flight.count() == 0)
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await ask(http, s, stream=stream)
            await until(lambda: s.app.state.gateway.dispatcher.in_flight.count() == 0)
            gc.collect()
            found = [one.f_code for one in gc.garbage if isinstance(one, FrameType)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    assert [one.co_qualname for one in found if "/gateway/" in one.co_filename] == []
