"""The engine process: reads messages from a socket, steps the core, writes outputs back.

A reader thread fills the inbox; the main thread owns the core. When the HTTP process is gone the
socket ends and this process ends with it, in the middle of a step too. It moves a counter on
inside steps and while it waits; the HTTP process kills it when that stands still.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from worker.engine import pipe
from worker.engine.config import EngineConfig
from worker.engine.cpus import usable_cores
from worker.engine.embedding import EmbedQueue, Vectors
from worker.engine.engine import JobFailed
from worker.engine.faults import NO_MEMORY, OutOfMemory
from worker.engine.protocol import EngineLoad, ModelLoadError, PromptOutput, StepOutput
from worker.engine.ranks import Ranks
from worker.engine.watchdog import Beat, Pulse, end_with_parent, idle_beat_s
from worker.hub_logs import shorten_retries

log = logging.getLogger(__name__)


def main() -> None:
    """`python -m worker.engine.child PARENT-PID SOCKET PULSE CONFIG-JSON`, two descriptors: run
    until the socket closes."""
    end_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the HTTP process decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s engine %(message)s")
    channel = socket.socket(fileno=int(sys.argv[2]))
    pulse = Pulse(int(sys.argv[3]))
    config = TypeAdapter(EngineConfig).validate_json(sys.argv[4])
    if not Path(config.model_path).is_dir():
        shorten_retries()
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(channel, inbox), daemon=True).start()
    size = config.tensor_parallel_size
    num_threads = max(1, usable_cores() // size)

    def rank_died(reason: str) -> None:
        log.error("%s", reason)
        with contextlib.suppress(OSError):  # past loading it is not listened to
            channel.sendall(pipe.encode(pipe.LoadFailed(reason)))
        os._exit(1)

    started = Ranks(size, num_threads, sys.argv[4], rank_died) if size > 1 else None
    with started or contextlib.nullcontext() as ranks:
        try:
            built = _build(config, channel, num_threads, ranks, pulse.beat)
        except ModelLoadError as error:
            channel.sendall(pipe.encode(pipe.LoadFailed(" ".join(str(error).split()))))
            return
        channel.sendall(pipe.encode(pipe.Ready(built.info, built.core.load())))
        try:
            _serve(built, channel, inbox, pulse.beat, idle_beat_s(config.stall_s))
        except ConnectionError:
            os._exit(0)  # the HTTP process is gone
        except Exception:
            log.exception("this engine is broken: its process ends")
            os._exit(1)  # at once: a device that is broken may never let go of an orderly end


def _build(
    config: EngineConfig,
    channel: socket.socket,
    num_threads: int,
    ranks: Ranks | None,
    beat: Beat,
) -> Any:
    def report(text: str) -> None:
        channel.sendall(pipe.encode(pipe.Progress(text)))

    report("importing torch")
    from worker.model.build import build

    return build(config, report, num_threads=num_threads, ranks=ranks, beat=beat)


def _serve(
    built: Any,
    channel: socket.socket,
    inbox: queue.SimpleQueue[Any],
    beat: Beat,
    idle_beat_s: float,
) -> None:
    """The step loop: take what came in, step, send what came out; wait when there is no work."""
    core, embeds = built.core, EmbedQueue(built.embed, built.embed_tokens)

    def load() -> EngineLoad:
        own: EngineLoad = core.load()
        return replace(
            own,
            waiting=own.waiting + len(embeds),
            waiting_tokens=own.waiting_tokens + embeds.tokens,
            step=own.step + embeds.batches,
            busy=own.busy or bool(embeds),
        )

    def next_message() -> Any:
        while True:
            beat()
            with contextlib.suppress(queue.Empty):
                return inbox.get(timeout=idle_beat_s)

    while True:
        beat()
        while not (core.has_work or embeds) or not inbox.empty():
            if _handle(core, embeds, next_message()):
                channel.sendall(pipe.encode(pipe.Step(load())))
        for ended in embeds.step() if embeds else ():
            for answer in _embedded(*ended):
                channel.sendall(pipe.encode(answer))
        outputs = core.step() if core.has_work else []
        step, numbers = pipe.Step(load()), 0
        for job_id, output in outputs:
            match output:
                case StepOutput():
                    step.tokens.append((job_id, output))
                    numbers += pipe.numbers_of(output)
                    if numbers > pipe.PIECE_NUMBERS:
                        channel.sendall(pipe.encode(step))
                        step, numbers = pipe.Step(step.load), 0
                case PromptOutput():
                    for piece in pipe.pieces(output):
                        channel.sendall(
                            pipe.encode(pipe.Step(step.load, prompts=[(job_id, piece)]))
                        )
                case JobFailed():
                    step.failures.append((job_id, output))
        channel.sendall(pipe.encode(step))


def _handle(core: Any, embeds: EmbedQueue, message: Any) -> bool:
    """Take a message; whether the load is to be told at once, since it fell."""
    match message:
        case pipe.Submit():
            core.submit(message.job)
        case pipe.UseTokenizer():
            core.use_tokenizer(message.described)
        case pipe.Embed():
            embeds.add(message.call_id, message.inputs, message.tenant)
        case pipe.Score():
            embeds.add(message.call_id, message.pairs, message.tenant)
        case pipe.Abort():
            core.abort(message.job_id, message.index)
            return True
        case pipe.AbortEmbed():
            embeds.abort(message.call_id)
            return True
    return False


def _embedded(call_id: int, result: Vectors | Exception) -> Iterable[pipe.Embedded]:
    if isinstance(result, OutOfMemory):
        return [pipe.Embedded(call_id, [], NO_MEMORY, "out_of_memory")]
    if isinstance(result, Exception):
        log.error("embedding failed", exc_info=result)
        return [pipe.Embedded(call_id, [], f"embedding failed: {type(result).__name__}")]
    return pipe.embedded(call_id, result)


def _read(channel: socket.socket, inbox: queue.SimpleQueue[Any]) -> None:
    # a process that ends without having read everything resets the connection
    with contextlib.suppress(ConnectionError), channel.makefile("rb") as lines:
        for line in lines:
            inbox.put(pipe.decode_to_engine(line))
    os._exit(0)


if __name__ == "__main__":
    main()
