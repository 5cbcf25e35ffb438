from __future__ import annotations

import asyncio
import io
from importlib import metadata
from typing import Any

import pytest

from protocol.errors import TriremeError
from protocol.generation import Done, Failed
from worker.config import Settings
from worker.engine.protocol import ModelLoadError
from worker.engine.registry import ENGINES
from worker.engine.sim import SimEngine


async def get(worker: Any, path: str, **headers: str) -> tuple[int, str]:
    async with worker.http.get(worker.url + path, headers=headers) as response:
        return response.status, await response.text()


async def test_health_routes_say_alive_and_ready(worker: Any) -> None:
    for path in ("/health", "/healthz", "/livez", "/ping", "/readyz", "/version"):
        assert (await get(worker, path))[0] == 200


async def test_metrics_have_vllms_names(worker: Any) -> None:
    await worker.events(prompt="hello")
    _, text = await get(worker, "/metrics")
    for series in (
        'vllm:num_requests_running{model_name="sim"} 0.0',
        'vllm:num_requests_waiting{model_name="sim"} 0.0',
        'vllm:kv_cache_usage_perc{model_name="sim"} 0.0',
        'vllm:prefix_cache_queries_total{model_name="sim"} 5.0',
        'vllm:prefix_cache_hits_total{model_name="sim"} 0.0',
        'vllm:prompt_tokens_total{model_name="sim"} 5.0',
        'vllm:generation_tokens_total{model_name="sim"} 8.0',
        'vllm:time_to_first_token_seconds_count{model_name="sim"} 1.0',
        'vllm:inter_token_latency_seconds_count{model_name="sim"} 7.0',
        'vllm:e2e_request_latency_seconds_count{model_name="sim"} 1.0',
        'vllm:request_queue_time_seconds_count{model_name="sim"} 1.0',
        'vllm:request_success_total{finished_reason="stop",model_name="sim"} 1.0',
        'trireme_worker_state{state="ready"} 1.0',
    ):
        assert series in text, series


async def test_failures_and_cancels_are_counted(start_worker: Any) -> None:
    worker = await start_worker(sim_ttft_ms=60_000)
    await worker.post("/native/generate", {"request_id": "r", "model": "x", "prompt": "x"})
    body = {"request_id": "r", "model": "sim", "prompt": "x"}
    response = await worker.http.post(worker.url + "/native/generate", json=body)
    response.close()
    await worker.until_idle(0.3)
    _, text = await get(worker, "/metrics")
    assert 'trireme_requests_failed_total{code="model_not_found"} 1.0' in text
    assert "trireme_requests_cancelled_total 1.0" in text


async def test_the_cluster_token_guards_all_but_the_health_routes(start_worker: Any) -> None:
    worker = await start_worker(cluster_token="sésame")
    assert (await get(worker, "/readyz"))[0] == 200
    assert (await get(worker, "/metrics"))[0] == 200
    for path in ("/native/generate", "/worker_generate_stream", "/count_token", "/nope"):
        status, answer = await worker.post(path, {})
        assert (status, answer["error"]["code"]) == (401, "missing_api_key")
    wrong = {"Authorization": "Bearer x"}
    assert (await get(worker, "/native/describe", **wrong))[0] == 401
    right = {"Authorization": "Bearer sésame"}
    assert (await get(worker, "/native/describe", **right))[0] == 200


async def test_the_openapi_document_has_every_body(worker: Any) -> None:
    async with worker.http.get(worker.url + "/openapi.json") as response:
        document = await response.json()
    body = document["paths"]["/native/generate"]["post"]["requestBody"]
    reference = body["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    assert "sampling" in schema["properties"]
    assert "SamplingParams" in document["components"]["schemas"]


async def test_an_oversized_body_is_refused(worker: Any) -> None:
    body = io.BytesIO(b" " * (16 * 1024 * 1024 + 1))
    async with worker.http.post(worker.url + "/native/generate", data=body) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "request_too_large"


async def test_an_unexpected_failure_is_json_without_its_text(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret path /srv/x")

    monkeypatch.setattr(SimEngine, "submit", broken)
    events = await worker.events(prompt="x")
    assert isinstance(events[-1], Failed)
    assert events[-1].code == "internal_error"
    assert "secret" not in events[-1].message


async def test_draining_refuses_new_requests_and_finishes_running_ones(
    start_worker: Any,
) -> None:
    worker = await start_worker(sim_itl_ms=20)
    running = asyncio.create_task(worker.events(prompt="x"))
    await worker.until_running()
    draining = asyncio.create_task(worker.drain())
    await asyncio.sleep(0.01)
    status, answer = await worker.post(
        "/native/generate", {"request_id": "r", "model": "sim", "prompt": "x"}
    )
    assert (status, answer["error"]["code"]) == (503, "draining")
    assert (await get(worker, "/readyz"))[0] == 503
    assert not draining.done()
    assert isinstance((await running)[-1], Done)
    await asyncio.wait_for(draining, 0.2)


async def test_a_drain_is_bounded(start_worker: Any) -> None:
    worker = await start_worker(sim_itl_ms=50, sim_tokens=10_000, drain_grace_s=0.05)
    running = asyncio.create_task(worker.events(prompt="x"))
    await worker.until_running()
    await asyncio.wait_for(worker.drain(), 0.5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def engine_of(worker: Any) -> Any:
    return worker.runtime.ready.engine


async def test_a_dead_engine_is_restarted_and_its_jobs_fail(
    start_worker: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "worker.service")
    monkeypatch.setattr("worker.runtime._RESTART_PAUSE_S", 0.01)
    worker = await start_worker(sim_itl_ms=10, sim_tokens=1000)
    digest = worker.runtime.ready.digest
    running = asyncio.create_task(worker.events(prompt="x"))
    await worker.until_running()
    await engine_of(worker).close()
    events = await running
    assert events[-1].code == "engine_dead"
    await worker.until_ready()
    assert worker.runtime.restarts == 1
    asked = {"request_id": "r", "model": "other", "prompt": "x"}
    assert (await worker.post("/native/generate", asked))[0] == 404
    told = [one for one in caplog.messages if one.startswith("request ")]
    assert told[0] == "request ended: engine_dead"
    assert told[1].startswith("request refused: model_not_found")
    assert worker.runtime.ready.digest == digest
    after = await worker.events(prompt="x", sampling={"max_tokens": 2})
    assert isinstance(after[-1], Done)


async def test_an_engine_that_keeps_dying_is_given_up(
    start_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.runtime._RESTART_PAUSE_S", 0.001)
    worker = await start_worker()
    for _ in range(6):
        await worker.until_ready()
        await engine_of(worker).close()
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    assert worker.runtime.state == "failed"
    status, answer = await worker.post(
        "/native/generate", {"request_id": "r", "model": "sim", "prompt": "x"}
    )
    assert (status, answer["error"]["code"]) == (503, "engine_unavailable")
    status, text = await get(worker, "/readyz")
    assert status == 503
    assert "the engine died 6 times: closed" in text
    _, record = await get(worker, "/native/describe")
    assert '"state":"failed"' in record
    assert "the engine died 6 times: closed" in record


async def test_a_start_that_fails_counts_like_a_death_and_is_tried_again(
    start_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.runtime._RESTART_PAUSE_S", 0.001)
    worker = await start_worker()
    reasons: list[str | None] = []
    worker.runtime.subscribe(lambda: reasons.append(worker.runtime.not_ready()))
    start, failures = SimEngine.start, iter([ModelLoadError("no memory yet"), OSError("busy")])

    async def start_at_last(engine: SimEngine) -> None:
        if (error := next(failures, None)) is not None:
            raise error
        await start(engine)

    monkeypatch.setattr(SimEngine, "start", start_at_last)
    await engine_of(worker).close()
    await worker.until(lambda: len(reasons) == 4)
    assert reasons == [
        "restarting the engine: closed",
        "restarting the engine: it cannot be started again: no memory yet",
        "restarting the engine: it cannot be started again: busy",
        None,
    ]
    assert worker.runtime.restarts == 3
    assert isinstance((await worker.events(prompt="x"))[-1], Done)


async def test_deaths_count_anew_after_a_minute_of_service(
    start_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.runtime._RESTART_PAUSE_S", 0.001)
    worker, hours = await start_worker(), 0
    clock = worker.runtime._clock
    monkeypatch.setattr(worker.runtime, "_clock", lambda: clock() + 3600 * hours)
    for _ in range(10):
        hours += 1
        restarts = worker.runtime.restarts
        await engine_of(worker).close()
        await worker.until(lambda before=restarts: worker.runtime.restarts > before)
        await worker.until_ready()
    assert worker.runtime.restarts == 10


async def test_a_simulated_engine_that_fails_is_started_again(
    start_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.runtime._RESTART_PAUSE_S", 0.001)
    worker = await start_worker(sim_itl_ms=5, sim_tokens=1000)
    running = asyncio.create_task(worker.events(prompt="x"))
    await worker.until_running()

    def broken(_now: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(engine_of(worker), "_emit_due", broken)
    assert (await running)[-1].code == "engine_dead"
    await worker.until_ready()
    assert isinstance((await worker.events(prompt="x", sampling={"max_tokens": 2}))[-1], Done)


async def test_requests_while_loading_are_told_to_come_again(
    start_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = asyncio.Event()
    start = SimEngine.start

    async def slow_start(self: SimEngine) -> None:
        await loaded.wait()
        await start(self)

    monkeypatch.setattr(SimEngine, "start", slow_start)
    monkeypatch.setattr(SimEngine, "progress", property(lambda _: "loading weights 40%"))
    worker = await start_worker(ready=False)
    status, text = await get(worker, "/readyz")
    assert status == 503
    assert "loading weights 40%" in text
    status, answer = await worker.post(
        "/native/generate", {"request_id": "r", "model": "sim", "prompt": "x"}
    )
    assert (status, answer["error"]["code"]) == (503, "overloaded")
    meant_for_another = {"request_id": "r", "model": "sim", "prompt": "x", "instance_id": "0" * 32}
    status, answer = await worker.post("/native/generate", meant_for_another)
    assert (status, answer["error"]["code"]) == (421, "wrong_instance")
    loaded.set()
    await worker.until_ready()


async def test_a_model_that_cannot_be_loaded_asks_for_exit_3(
    start_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.engine.protocol import ModelLoadError

    async def fail(self: SimEngine) -> None:
        raise ModelLoadError("weights are truncated")

    monkeypatch.setattr(SimEngine, "start", fail)
    worker = await start_worker(ready=False)
    await worker.until(lambda: worker.exit_request.code is not None)
    assert worker.exit_request.code == 3
    assert worker.exit_request.reason == "python -m worker: weights are truncated"


def test_a_package_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from worker.engine.protocol import ModelLoadError

    def version(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ModelLoadError, match="needs torch: install Trireme with its extra"):
        ENGINES["paged"].build(Settings(_cli_parse_args=[]))


def test_the_engines_are_those_of_the_flag() -> None:
    assert set(ENGINES) == {"paged", "generate", "sim"}


async def test_a_job_that_the_engine_fails_ends_with_its_code(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(self: SimEngine, job: Any, hold_s: float) -> Any:
        raise TriremeError("out_of_memory", "No memory is left.")
        yield

    monkeypatch.setattr(SimEngine, "submit", failing)
    events = await worker.events(prompt="x")
    assert (events[-1].code, len(events)) == ("out_of_memory", 2)
