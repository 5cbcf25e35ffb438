"""The HTTP process's end of the engine process: an `Engine` that speaks to `child.py`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace

from pydantic import ValidationError
from pydantic_core import to_json

from protocol.errors import TriremeError
from worker.engine import pipe
from worker.engine.config import EngineConfig
from worker.engine.effort import cpu_s, effort_of
from worker.engine.outputs import Output, Outputs
from worker.engine.protocol import (
    EngineInfo,
    EngineLoad,
    Job,
    ModelLoadError,
    Pair,
    StepOutput,
)
from worker.engine.watchdog import Pulse, Watchdog

__all__ = ["EngineConfig", "EngineProcess"]

log = logging.getLogger(__name__)

_LINE_LIMIT = 256 * 1024 * 1024
_LARGE_LINE = 64 * 1024
_LOOK_AT_LOAD_S = 2.0
_END_S = 5.0
"""What a killed process gets to be gone: one that waits for a broken device may never be."""


@dataclass(frozen=True, slots=True)
class _EmbedCall:
    """A call under way: what has come of it, and who waits for all."""

    answer: asyncio.Future[list[list[float]]]
    vectors: list[list[float]] = field(default_factory=list)


class EngineProcess:
    """An engine in a process of its own, which dies with this one.

    It is killed when it makes no progress for `config.stall_s`, or while it loads for
    `config.load_stall_s`, whatever the cause.

    Args:
        config: which model, where, how large.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._progress = "starting the engine process"
        self._info: EngineInfo | None = None
        self._load = EngineLoad()
        self._jobs: dict[str, Outputs] = {}
        self._embeds: dict[int, _EmbedCall] = {}
        self._call_ids = itertools.count()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._pulse: Pulse | None = None
        self._dead: asyncio.Future[str] | None = None

    @property
    def info(self) -> EngineInfo:
        """Valid once `start` has returned."""
        if self._info is None:
            raise RuntimeError("the engine is not ready")
        return self._info

    @property
    def progress(self) -> str:
        """How far loading is, for people; empty once ready."""
        return self._progress

    @property
    def pid(self) -> int | None:
        """Process id of the engine, None before the start."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process, load and warm up.

        Raises:
            ModelLoadError: with a one-line reason.
        """
        self._dead = asyncio.get_running_loop().create_future()
        self._pulse = pulse = Pulse.create()
        try:
            reader = await self._spawn(pulse)
            await self._load_model(reader, pulse)
        except BaseException:
            await self.close()
            raise
        self._reading = asyncio.create_task(self._read(reader))
        self._watching = asyncio.create_task(self._watch(pulse))

    async def wait_dead(self) -> str:
        """Returns a reason when the process has ended."""
        assert self._dead is not None, "not started"
        return await asyncio.shield(self._dead)

    async def submit(self, job: Job, hold_s: float = 0.0) -> AsyncGenerator[list[Output], None]:
        """Outputs of a job until each choice has its `finish`; closing aborts what still runs."""
        self._require_alive()
        outputs = Outputs(job, hold_s)
        self._jobs[job.job_id] = outputs
        left = {index for index, _ in job.choices}
        try:
            self._send(pipe.Submit(job))
            while left and (taken := await outputs.take()):
                for output in taken:
                    if isinstance(output, StepOutput) and output.finish:
                        left.discard(output.index)
                yield taken
        except TriremeError:
            left.clear()  # the engine has dropped it
            raise
        finally:
            outputs.close()
            del self._jobs[job.job_id]
            if left:
                self._send(pipe.Abort(job.job_id))

    def abort(self, job_id: str, index: int) -> None:
        """End one choice early; no further output comes for it."""
        if job_id in self._jobs:
            self._send(pipe.Abort(job_id, index))

    async def embed(self, inputs: list[list[int]], tenant: str = "") -> list[list[float]]:
        """As `Engine.embed`."""
        return await self._vectors(lambda call_id: pipe.Embed(call_id, inputs, tenant))

    async def score(self, pairs: list[Pair], tenant: str = "") -> list[float]:
        """As `Engine.score`."""
        scores = await self._vectors(lambda call_id: pipe.Score(call_id, pairs, tenant))
        return [score for [score] in scores]

    async def _vectors(self, message: Callable[[int], pipe.ToEngine]) -> list[list[float]]:
        self._require_alive()
        call_id = next(self._call_ids)
        call = self._embeds[call_id] = _EmbedCall(asyncio.get_running_loop().create_future())
        try:
            self._send(message(call_id))
            return await call.answer
        finally:
            del self._embeds[call_id]
            if not call.answer.done() or call.answer.cancelled():
                self._send(pipe.AbortEmbed(call_id))

    def load(self) -> EngineLoad:
        """The load as last reported; busy from the moment that work is sent."""
        busy = self._load.busy or bool(self._jobs) or bool(self._embeds)
        return replace(self._load, busy=busy)

    async def close(self) -> None:
        """End the process at once; running jobs fail with `engine_dead`."""
        tasks = [task for task in (self._watching, self._reading) if task is not None]
        self._watching = self._reading = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
        if self._process is not None and self._process.returncode is None:
            self._kill()
            try:
                async with asyncio.timeout(_END_S):
                    await self._process.wait()
            except TimeoutError:
                log.error("the engine process %d cannot be killed: left behind", self.pid)
        if self._pulse is not None:
            self._pulse.close()
            self._pulse = None
        self._die("the engine was stopped")

    async def _spawn(self, pulse: Pulse) -> asyncio.StreamReader:
        """Start the process; what it sends can be read there."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                passed = [theirs.fileno(), pulse.descriptor]
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "worker.engine.child",
                    *map(str, [os.getpid(), *passed]),
                    to_json(self._config).decode(),
                    pass_fds=passed,
                    env={**_waiting(), **os.environ},
                    stdin=asyncio.subprocess.DEVNULL,
                )
            reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=_LINE_LIMIT)
        except BaseException:
            ours.close()
            raise
        return reader

    async def _load_model(self, reader: asyncio.StreamReader, pulse: Pulse) -> None:
        """Wait until it is ready; a process that has stopped to load is not waited for."""
        ready = asyncio.create_task(self._wait_ready(reader))
        stalled = asyncio.create_task(self._wait_stalled(pulse))
        try:
            await asyncio.wait((ready, stalled), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                await stalled
                limit_s = self._config.load_stall_s
                raise ModelLoadError(
                    f"the engine process did nothing for {limit_s:g} s ({self._progress})"
                )
            await ready
        finally:
            for task in (ready, stalled):
                task.cancel()
            await asyncio.gather(ready, stalled, return_exceptions=True)

    async def _wait_stalled(self, pulse: Pulse) -> None:
        """Returns when the process that loads does nothing at all. It may have to compile, or to
        wait for another one that downloads the same files: all that it does is progress."""
        assert self._process is not None
        now_s = asyncio.get_running_loop().time
        watchdog = Watchdog(self._config.load_stall_s, _LOOK_AT_LOAD_S)
        while True:
            effort = await asyncio.to_thread(effort_of, self._process.pid)
            did = (self._progress, pulse.count, effort)
            if effort is not None and watchdog.is_hung(did, now_s()):
                return
            await asyncio.sleep(watchdog.look_every_s)

    async def _wait_ready(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            message = pipe.decode_from_engine(line)
            match message:
                case pipe.Progress():
                    self._progress = message.text
                case pipe.LoadFailed():
                    raise ModelLoadError(message.reason)
                case pipe.Ready():
                    self._info, self._load, self._progress = message.info, message.load, ""
                    return
                case _:
                    raise ModelLoadError(f"unexpected {message.kind} from the engine process")
        assert self._process is not None
        code = await self._process.wait()
        raise ModelLoadError(f"the engine process ended while loading ({_ending(code)})")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Hand each message to whom it belongs, until the process ends."""
        reason = ""
        try:
            while line := await reader.readline():
                self._dispatch(pipe.decode_from_engine(line))
                if len(line) > _LARGE_LINE:
                    await asyncio.sleep(0)  # the next one may be there already
        except ConnectionError:
            pass  # it ended with messages from here unread
        except (ValidationError, ValueError) as error:
            reason = f"the engine process sent nonsense: {type(error).__name__}"
        except Exception:  # nobody reads on, so everybody would wait for ever
            log.exception("what the engine process sent could not be handed on")
            reason = "what the engine process sent could not be handed on"
        assert self._process is not None
        if not reason:
            # it is ending by itself: a kill now could take its exit code from asyncio's watcher
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._process.wait()
        self._kill()
        code = await self._process.wait()
        self._die(reason or f"the engine process ended ({_ending(code)})")

    async def _watch(self, pulse: Pulse) -> None:
        """Kill the process when it is hung; what waits for it is told at once."""
        assert self._process is not None
        pid, now_s = self._process.pid, asyncio.get_running_loop().time
        watchdog = Watchdog(self._config.stall_s)
        # a layer on a GPU takes milliseconds, and who waits for it may spin
        on_cpu = self.info.device.startswith("cpu")
        while not watchdog.is_hung(  # noqa: ASYNC110  # none wakes it
            pulse.count, now_s(), cpu_s(pid) if on_cpu else 0.0
        ):
            await asyncio.sleep(watchdog.look_every_s)
        self._kill()
        self._die(f"the engine made no progress for {watchdog.still_s:.1f} s and was killed")

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _dispatch(self, message: object) -> None:
        match message:
            case pipe.Step():
                self._load = message.load
                given: list[tuple[str, Output]] = [*message.prompts, *message.tokens]
                for job_id, output in given:
                    if (outputs := self._jobs.get(job_id)) is not None:
                        outputs.put(output)
                for job_id, failed in message.failures:
                    if (outputs := self._jobs.get(job_id)) is not None:
                        outputs.fail(TriremeError(failed.code, failed.message))
            case pipe.Embedded():
                self._take_vectors(message)

    def _take_vectors(self, message: pipe.Embedded) -> None:
        call = self._embeds.get(message.call_id)
        if call is None or call.answer.done():
            return
        if message.error:
            call.answer.set_exception(TriremeError(message.code, message.error))
            return
        call.vectors.extend(message.vectors)
        if not message.more:
            call.answer.set_result(call.vectors)

    def use_tokenizer(self, described: str) -> None:
        """As `Engine.use_tokenizer`."""
        self._send(pipe.UseTokenizer(described))

    def _send(self, message: pipe.ToEngine) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pipe.encode(message))

    def _require_alive(self) -> None:
        if self._info is None or self._dead is None or self._dead.done():
            raise TriremeError("engine_unavailable", "the engine is not running")

    def _die(self, reason: str) -> None:
        if self._dead is None or self._dead.done():
            return
        self._dead.set_result(reason)
        for outputs in self._jobs.values():
            outputs.fail(TriremeError("engine_dead", reason))
        for call in self._embeds.values():
            if not call.answer.done():
                call.answer.set_exception(TriremeError("engine_dead", reason))


def _waiting() -> dict[str, str]:
    """How the engine's OpenMP threads wait for each other, unless the environment says so itself.

    They spin for some microseconds and then sleep. Without spinning a quiet machine is a third
    slower; with libgomp's default, a machine whose cores have other work too is several times
    slower, since a spinning thread keeps the one that it waits for from running
    (docs/performance.md).
    """
    return {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": "20000"}


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
