"""Slow grammars of some clients hold up no other client's request."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from protocol.generation import Done
from tests.worker.conftest import StartWorker
from worker.text.structure import Structures


async def test_many_slow_grammars_leave_the_threads_to_others(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start_worker(sim_tokens=2)
    ready = worker.runtime.ready
    assert ready is not None
    object.__setattr__(ready.info, "grammars", True)
    going_on = threading.Event()

    def slow(_self: Structures, _structure: Any) -> str:
        going_on.wait(20)
        return "{}"

    monkeypatch.setattr(Structures, "grammar", slow)
    shaped = {"prompt": "x", "structure": {"kind": "json_object"}}
    url = worker.url + "/native/generate"
    body = {"request_id": "r", "model": "sim"}
    slow_ones = [
        asyncio.create_task(worker.http.post(url, json={**body, **shaped})) for _ in range(64)
    ]
    try:
        await asyncio.sleep(0.2)
        async with asyncio.timeout(5):  # this one is tokenized beside the event loop
            events = await worker.events(prompt="word " * 2000)
        assert isinstance(events[-1], Done)
        assert not any(one.done() for one in slow_ones)
    finally:
        going_on.set()
        for one in await asyncio.gather(*slow_ones):
            one.close()
