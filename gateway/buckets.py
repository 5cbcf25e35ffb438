"""Token buckets: how fast something may be used, and where their state is kept. No clock.

A bucket holds what may be used in a minute and fills at that rate, so it bounds a burst and the
rate in one. Its state is a single number, the time at which it is full again: the virtual
scheduling algorithm of ITU-T I.371, known as GCRA.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

WINDOW_S: Final = 60.0
_ROUNDING_S: Final = 1e-6

_SETS: Final = 4096
_WAYS: Final = 8
_ID_BYTES: Final = 16
_NUMBERS: Final = 2
_ROW_BYTES: Final = _ID_BYTES + 8 * _NUMBERS
TABLE_BYTES: Final = _SETS * _WAYS * _ROW_BYTES
_LOCK_WAIT_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Bucket:
    """`limit` a minute. Times are seconds on one clock; `full_at` is the bucket's state."""

    limit: int

    def left(self, full_at: float, now: float) -> float:
        """What may be used at once; below 0 when more was used than was there."""
        return self.limit - max(0.0, full_at - now) * self.limit / WINDOW_S

    def wait_s(self, full_at: float, amount: float, now: float) -> float:
        """Seconds until so much may be used, which is at most `limit`; 0 when that is now."""
        wait_s = self.taken(full_at, amount, now) - now - WINDOW_S
        return wait_s if wait_s > _ROUNDING_S else 0.0

    def taken(self, full_at: float, amount: float, now: float) -> float:
        """The state after so much was used. A negative amount gives back."""
        begin = max(full_at, now) if amount > 0 else full_at
        return begin + amount * WINDOW_S / self.limit


class Table:
    """The states of many callers' buckets, a row of two numbers each, found by the caller's id.

    Eight rows have room for the ids of one hash; a ninth takes the place of the one that is full
    first, which loses nothing where that one is full already.

    Args:
        fd: of a file of `TABLE_BYTES` zeros that several processes share; without one the table
            is this process' own.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._fd = fd
        memory = bytearray(TABLE_BYTES) if fd is None else mmap.mmap(fd, TABLE_BYTES)
        self._bytes = memoryview(memory)
        self._numbers = self._bytes.cast("d")
        self._places: dict[bytes, int] = {}

    @contextlib.contextmanager
    def row(self, owner: bytes) -> Iterator[memoryview[float]]:
        """The two numbers of an id of 16 bytes that are not all 0, this process' alone meanwhile.

        A new row has zeros.
        """
        start = _first_of(owner)
        self._lock(start)
        try:
            yield self._find(owner, start)
        finally:
            if self._fd is not None:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, _WAYS * _ROW_BYTES, start)

    def peek(self, owner: bytes) -> tuple[float, float]:
        """The two numbers, which others may be changing."""
        place = self._known(owner, _first_of(owner))
        if place < 0:
            return 0.0, 0.0
        first, second = self._row(place)
        return first, second

    def _find(self, owner: bytes, start: int) -> memoryview[float]:
        place = self._known(owner, start)
        if place < 0:
            place = min(_rows_from(start), key=lambda at: max(self._row(at)))
            self._bytes[place : place + _ID_BYTES] = owner
            self._row(place)[0] = self._row(place)[1] = 0.0
        return self._row(place)

    def _known(self, owner: bytes, start: int) -> int:
        """Where its row is, -1 for nowhere; other processes may have given it to another id."""
        place = self._places.get(owner, start)
        if self._bytes[place : place + _ID_BYTES] == owner:
            return place
        for place in _rows_from(start):
            if self._bytes[place : place + _ID_BYTES] == owner:
                self._places[owner] = place
                return place
        return -1

    def _row(self, place: int) -> memoryview[float]:
        number = (place + _ID_BYTES) // 8
        return self._numbers[number : number + _NUMBERS]

    def _lock(self, start: int) -> None:
        """Keep other processes from these rows.

        Not for ever: one that is stopped in the middle must not stop the others.
        """
        if self._fd is None:
            return
        until = 0.0
        while True:
            with contextlib.suppress(OSError):
                kind = fcntl.LOCK_EX | fcntl.LOCK_NB
                fcntl.lockf(self._fd, kind, _WAYS * _ROW_BYTES, start)
                return
            now = time.monotonic()
            until = until or now + _LOCK_WAIT_S
            if now > until:
                return


def _rows_from(start: int) -> range:
    return range(start, start + _WAYS * _ROW_BYTES, _ROW_BYTES)


def _first_of(owner: bytes) -> int:
    """Where the rows of its hash begin, in bytes."""
    return int.from_bytes(owner[:4], "little") % _SETS * _WAYS * _ROW_BYTES
