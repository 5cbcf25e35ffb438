"""The other processes of a tensor-parallel engine, as its own process, rank 0, sees them.

Rank 0 starts them, sends each the same orders over a socket of its own, and neither outlives the
other: a rank ends when its socket does, and when a rank ends rank 0 is told. Orders go over these
sockets and not through torch.distributed, since an idle engine would run into its timeouts.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Final, Self

_LENGTH: Final = struct.Struct("<I")
_LAST_WORDS: Final = 4096
_END_S: Final = 10.0


class Kind(IntEnum):
    """What an order asks for."""

    PLAIN = auto()  # numbers: a text, for the model as it was loaded; then attention is replaced
    LEAST = auto()  # numbers: sequences in a batch; agree on the number of KV blocks
    ALLOCATE = auto()  # numbers: how many blocks
    CLEAR = auto()  # numbers: which blocks
    COPY = auto()  # numbers: from and to, block by block
    LOGITS = auto()  # numbers: the step's token ids
    EMBED = auto()  # numbers: the inputs' token ids


@dataclass(frozen=True, slots=True)
class Order:
    """What every rank does next.

    Attributes:
        numbers: as its kind says.
        spans: (start, length, block table) of each sequence's part of a step.
        kept: positions of a step's flat row whose logits are wanted.
    """

    kind: Kind
    numbers: Sequence[int] = ()
    spans: Sequence[tuple[int, int, Sequence[int]]] = ()
    kept: Sequence[int] = ()

    def encode(self) -> bytes:
        """A frame: its length in bytes, then 32-bit numbers."""
        frame = array("i", [self.kind, len(self.numbers), len(self.kept), len(self.spans)])
        frame.extend(self.numbers)
        frame.extend(self.kept)
        for start, length, blocks in self.spans:
            frame.extend((start, length, len(blocks)))
            frame.extend(blocks)
        return _LENGTH.pack(len(frame) * frame.itemsize) + frame.tobytes()

    @staticmethod
    def decode(frame: bytes) -> Order:
        """Read a frame, without its length."""
        read = array("i")
        read.frombytes(frame)
        found = read.tolist()
        at = 4

        def take(count: int) -> list[int]:
            nonlocal at
            at += count
            return found[at - count : at]

        kind, num_numbers, num_kept, num_spans = found[:4]
        numbers, kept = take(num_numbers), take(num_kept)
        spans = []
        for _ in range(num_spans):
            start, length, num_blocks = take(3)
            spans.append((start, length, take(num_blocks)))
        return Order(Kind(kind), numbers, spans, kept)


def orders(channel: socket.socket) -> Iterator[Order]:
    """The orders that come over `channel`, until it ends."""
    with contextlib.suppress(ConnectionError), channel.makefile("rb") as frames:
        while len(head := frames.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            frame = frames.read(length)
            if len(frame) < length:
                return
            yield Order.decode(frame)


class Ranks:
    """Ranks 1 and above of an engine, while it is entered.

    Attributes:
        size: ranks, this process included.
        listener: a bound socket on which rank 0 lets the ranks meet.

    Args:
        size: ranks, at least 2.
        num_threads: threads of each on the CPU.
        config: what the engine process was told, as JSON.
        died: called in a thread with a reason, in one line, when a rank has ended.
    """

    def __init__(
        self, size: int, num_threads: int, config: str, died: Callable[[str], None]
    ) -> None:
        self.size = size
        self.listener = socket.create_server(("127.0.0.1", 0))
        self._arguments = [str(self.listener.getsockname()[1]), str(num_threads), config]
        self._died = died
        self._closing = False
        self._channels: list[socket.socket] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._watches: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for rank in range(1, self.size):
            ours, theirs = socket.socketpair()
            with theirs:
                arguments = [str(os.getpid()), str(theirs.fileno()), str(rank), *self._arguments]
                process = subprocess.Popen(
                    [sys.executable, "-m", "worker.model.rank", *arguments],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
            self._channels.append(ours)
            self._processes.append(process)
            watch = threading.Thread(target=self._watch, args=(rank, ours, process), daemon=True)
            watch.start()
            self._watches.append(watch)
        return self

    def __exit__(self, *_exc: object) -> None:
        """End the ranks, and wait for that."""
        self._closing = True
        for channel in self._channels:
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
        for process in self._processes:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for watch in self._watches:
            watch.join()
        for channel in self._channels:
            channel.close()
        self.listener.close()

    def send(self, order: Order) -> None:
        """Have every other rank carry out `order`."""
        frame = order.encode()
        for channel in self._channels:
            channel.sendall(frame)

    def _watch(self, rank: int, channel: socket.socket, process: subprocess.Popen[bytes]) -> None:
        words = b""
        with contextlib.suppress(OSError):
            while part := channel.recv(_LAST_WORDS):
                words += part
        if self._closing:
            return
        code = process.wait()
        ending = f"signal {-code}" if code < 0 else f"exit code {code}"
        self._died(words.decode() or f"rank {rank} of the engine ended ({ending})")
