"""A rank above 0 of a tensor-parallel engine: loads its part and carries out rank 0's orders.

A reader thread fills the inbox; the main thread computes. When rank 0 is gone the socket ends and
this process ends with it, in the middle of a forward too.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from pydantic import TypeAdapter

from worker.engine.config import EngineConfig
from worker.engine.protocol import ModelLoadError
from worker.engine.ranks import Kind, Order, orders
from worker.engine.watchdog import end_with_parent

log = logging.getLogger(__name__)


def main() -> None:
    """`python -m worker.model.rank PARENT-PID FD RANK PORT THREADS CONFIG-JSON`: run until the
    socket ends."""
    end_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    descriptor, rank, port, num_threads = map(int, sys.argv[2:6])
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s %(levelname)-7s rank {rank} %(message)s"
    )
    channel = socket.socket(fileno=descriptor)
    config = TypeAdapter(EngineConfig).validate_json(sys.argv[6])
    inbox: queue.SimpleQueue[Order] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(channel, inbox), daemon=True).start()
    try:
        _follow(config, rank, port, num_threads, iter(inbox.get, None))
    except ModelLoadError as error:
        channel.sendall(" ".join(str(error).split()).encode())
    except Exception:
        log.exception("this rank has failed")
    finally:
        os._exit(1)  # whoever waits in a collective learns of it by the closed connections


def _read(channel: socket.socket, inbox: queue.SimpleQueue[Order]) -> None:
    for order in orders(channel):
        inbox.put(order)
    os._exit(0)


def _follow(
    config: EngineConfig, rank: int, port: int, num_threads: int, inbox: Iterator[Order]
) -> None:
    import torch

    from worker.model.attention import Span
    from worker.model.build import blocks_for, paged_attention, set_threads
    from worker.model.loader import load_model, pick_device
    from worker.model.parallel import join, least
    from worker.model.runner import ModelRunner

    torch.set_num_threads(num_threads)
    join(pick_device(config), rank, config.tensor_parallel_size, port)
    loaded = load_model(config, lambda _text: None)
    set_threads(loaded.model, num_threads)
    attention = paged_attention(loaded)
    runner = ModelRunner(loaded.model, attention, loaded.device)
    for order in inbox:
        match order.kind:
            case Kind.PLAIN:
                runner.plain(order.numbers)
                attention.install(loaded.model)
            case Kind.LEAST:
                [max_running] = order.numbers
                least(blocks_for(config, loaded, attention, max_running), loaded.device)
            case Kind.ALLOCATE:
                [num_blocks] = order.numbers
                runner.allocate(num_blocks)
            case Kind.CLEAR:
                runner.clear(list(order.numbers))
            case Kind.COPY:
                blocks = iter(order.numbers)
                runner.copy(list(zip(blocks, blocks, strict=True)))
            case Kind.LOGITS:
                runner.logits(order.numbers, [Span(*span) for span in order.spans], order.kept)
            case Kind.EMBED:
                tokens = iter(order.numbers)
                runner.embed([[next(tokens) for _ in range(one[1])] for one in order.spans])


if __name__ == "__main__":
    main()
