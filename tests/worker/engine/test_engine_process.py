"""The HTTP process's end of an engine that does what no engine should; the process is a `sleep`."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from protocol.errors import TriremeError
from worker.engine import pipe
from worker.engine.config import EngineConfig
from worker.engine.effort import cpu_s
from worker.engine.engine import JobFailed
from worker.engine.process import EngineProcess
from worker.engine.protocol import EngineInfo, EngineLoad, Job, ModelLoadError, SequenceParams
from worker.engine.watchdog import Pulse

INFO = EngineInfo("fake", 100, (2,), 300, 1, device="cpu")


@pytest.fixture
async def engine() -> AsyncIterator[Any]:
    """An engine that says that it is ready, and nothing else."""
    made: Any = EngineProcess(EngineConfig(model_path="none", stall_s=0.4))
    made._process = await asyncio.create_subprocess_exec("sleep", "60")
    made._dead = asyncio.get_running_loop().create_future()
    made._info, made._pulse = INFO, Pulse.create()
    yield made
    await made.close()


def failing(engine: Any) -> asyncio.Task[str]:
    """The code with which a job ends."""

    async def run() -> str:
        with pytest.raises(TriremeError) as caught:
            async for _outputs in engine.submit(Job("a", [5], SequenceParams(max_tokens=9))):
                pass
        return caught.value.code

    return asyncio.create_task(run())


async def test_a_process_that_does_not_move_is_killed_and_its_jobs_fail(engine: Any) -> None:
    job = failing(engine)
    began = time.monotonic()
    watching = asyncio.create_task(engine._watch(engine._pulse))
    assert await asyncio.wait_for(job, 20) == "engine_dead"
    assert 0.4 < time.monotonic() - began < 10
    assert re.fullmatch(
        r"the engine made no progress for \d\.\d s and was killed", await engine.wait_dead()
    )
    assert await engine._process.wait() == -9
    assert await asyncio.wait_for(failing(engine), 5) == "engine_unavailable"
    await watching


async def test_a_process_that_moves_is_left_alone(engine: Any) -> None:
    watching = asyncio.create_task(engine._watch(engine._pulse))
    for _ in range(15):
        await asyncio.sleep(0.05)
        engine._pulse.beat()
    assert not watching.done()
    watching.cancel()


@pytest.fixture
async def computing(engine: Any) -> Any:
    """The same, computing all the time."""
    engine._process.kill()
    await engine._process.wait()
    engine._process = await asyncio.create_subprocess_exec(sys.executable, "-c", "while 1: pass")
    engine._config = EngineConfig(model_path="none", stall_s=2.0)
    return engine


async def test_a_process_that_computes_without_moving_is_left_alone(computing: Any) -> None:
    """A layer on the CPU may last long."""
    watching = asyncio.create_task(computing._watch(computing._pulse))
    while cpu_s(computing.pid) < 4.0:
        assert not watching.done()
        await asyncio.sleep(0.05)
    os.kill(computing.pid, signal.SIGSTOP)
    await asyncio.wait_for(watching, 20)


async def test_where_the_model_is_on_a_gpu_computing_is_no_sign_of_life(computing: Any) -> None:
    """Who waits for a GPU may spin."""
    computing._info = replace(INFO, device="cuda:0")
    await asyncio.wait_for(computing._watch(computing._pulse), 20)
    assert "no progress for 2." in await computing.wait_dead()


async def test_an_engine_that_stops_while_it_loads_is_not_waited_for() -> None:
    engine = EngineProcess(EngineConfig(model_path="none", load_stall_s=0.6))
    starting = asyncio.create_task(engine.start())
    while engine.pid is None:  # noqa: ASYNC110  # nothing tells when it is there
        await asyncio.sleep(0.01)
    os.kill(engine.pid, signal.SIGSTOP)
    with pytest.raises(ModelLoadError) as caught:
        await asyncio.wait_for(starting, 20)
    assert (
        str(caught.value)
        == "the engine process did nothing for 0.6 s (starting the engine process)"
    )
    assert not psutil.pid_exists(engine.pid)


async def test_nothing_is_left_open_when_the_process_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    before = psutil.Process().num_fds()
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            await EngineProcess(EngineConfig(model_path="none")).start()
    assert psutil.Process().num_fds() == before


@pytest.mark.parametrize(
    "line",
    [
        b"no message\n",
        pipe.encode(pipe.Step(EngineLoad(), failures=[("a", JobFailed("no_such_code", "x"))])),
    ],
    ids=["nonsense", "an unknown code"],
)
async def test_a_message_that_cannot_be_handed_on_leaves_nobody_waiting(
    engine: Any, line: bytes
) -> None:
    job, reader = failing(engine), asyncio.StreamReader()
    await asyncio.sleep(0)
    reading = asyncio.create_task(engine._read(reader))
    reader.feed_data(line)
    assert await asyncio.wait_for(job, 5) == "engine_dead"
    assert await engine._process.wait() == -9
    await reading
