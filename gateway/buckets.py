"""Token buckets: how fast something may be used, and where their state is kept. No clock.

A bucket holds what may be used in a minute and fills at that rate, so it bounds a burst and the
rate in one. Its state is a single number, the time at which it is full again: the virtual
scheduling algorithm of ITU-T I.371, known as GCRA.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import time
from typing import Final

log = logging.getLogger(__name__)

WINDOW_S: Final = 60.0
_ROUNDING_S: Final = 1e-6

_SETS: Final = 4096
_WAYS: Final = 8
_ID_BYTES: Final = 16
_NUMBERS: Final = 2
_ROW_BYTES: Final = _ID_BYTES + 8 * _NUMBERS
_SET_BYTES: Final = _WAYS * _ROW_BYTES
TABLE_BYTES: Final = _SETS * _SET_BYTES
_LOCK_WAIT_S: Final = 0.002
_NO_WAIT_S: Final = 1.0
"""After it has waited in vain, for so long nobody waits for the same rows again."""


# ---- a bucket of `limit` a minute; times are seconds on one clock, `full_at` is its state --------


def left(limit: int, full_at: float, now: float) -> float:
    """What may be used at once; below 0 when more was used than was there."""
    return limit - (full_at - now) * limit / WINDOW_S if full_at > now else limit


def wait_s(limit: int, full_at: float, amount: float, now: float) -> float:
    """Seconds until so much may be used, which is at most `limit`; 0 when that is now."""
    missing_s = taken(limit, full_at, amount, now) - now - WINDOW_S
    return missing_s if missing_s > _ROUNDING_S else 0.0


def taken(limit: int, full_at: float, amount: float, now: float) -> float:
    """The state after so much was used. A negative amount gives back."""
    begin = now if amount > 0 and full_at < now else full_at
    return begin + amount * WINDOW_S / limit


# ---- many buckets --------------------------------------------------------------------------------


class Table:
    """The states of many callers' buckets, a row of two numbers each, found by the caller's id.

    Eight rows have room for the ids of one hash; a ninth takes the place of the one that is full
    first, which loses nothing where that one is full already.

    Attributes:
        numbers: of all rows; `acquire` tells where an id's begin.

    Args:
        fd: of a file of `TABLE_BYTES` zeros that several processes share; without one the table
            is this process' own.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._fd = fd
        self._memory = bytearray(TABLE_BYTES) if fd is None else mmap.mmap(fd, TABLE_BYTES)
        self.numbers = memoryview(self._memory).cast("d")
        self._places: dict[bytes, int] = {}
        self._no_wait_until_s: dict[int, float] = {}

    def acquire(self, owner: bytes) -> int:
        """Where the two numbers are of an id of 16 bytes that are not all 0; they are this
        process' alone until `release`. A new row has zeros.

        Raises:
            OSError: the file cannot be locked at all.
        """
        start = self._start(owner)
        if self._fd is not None:
            self._lock(self._fd, start)
        place = self._known(owner, start)
        if place < 0:
            place = min(_rows_from(start), key=self._full_at)
            self._memory[place : place + _ID_BYTES] = owner
            number = _number(place)
            self.numbers[number] = self.numbers[number + 1] = 0.0
        return _number(place)

    def release(self, at: int) -> None:
        """Let other processes change the numbers that are there."""
        if self._fd is not None:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, _SET_BYTES, _set_of(8 * at))

    def peek(self, owner: bytes) -> tuple[float, float]:
        """The two numbers, which others may be changing."""
        place = self._known(owner, self._start(owner))
        if place < 0:
            return 0.0, 0.0
        number = _number(place)
        return self.numbers[number], self.numbers[number + 1]

    def _start(self, owner: bytes) -> int:
        """Where the rows of its hash begin."""
        place = self._places.get(owner)
        if place is None:
            return int.from_bytes(owner[:4], "little") % _SETS * _SET_BYTES
        return _set_of(place)

    def _known(self, owner: bytes, start: int) -> int:
        """Where its row is, -1 for nowhere; other processes may have given it to another id."""
        place = self._places.get(owner, start)
        if self._memory[place : place + _ID_BYTES] == owner:
            return place
        for place in _rows_from(start):
            if self._memory[place : place + _ID_BYTES] == owner:
                self._places[owner] = place
                return place
        return -1

    def _full_at(self, place: int) -> float:
        number = _number(place)
        return max(self.numbers[number], self.numbers[number + 1])

    def _lock(self, fd: int, start: int) -> None:
        """Keep other processes from these rows.

        Not for long: one that is stopped in the middle must not stop the others.
        """
        until_s: float | None = None
        while True:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, _SET_BYTES, start)
                return
            except BlockingIOError:
                now_s = time.monotonic()
            until_s = until_s or now_s + _LOCK_WAIT_S
            if now_s < self._no_wait_until_s.get(start, 0.0):
                return
            if now_s >= until_s:
                if not self._no_wait_until_s:
                    log.warning("a gateway process keeps limits locked: is one of them stopped?")
                self._no_wait_until_s[start] = now_s + _NO_WAIT_S
                return


def _rows_from(start: int) -> range:
    return range(start, start + _SET_BYTES, _ROW_BYTES)


def _number(place: int) -> int:
    """The first number of the row that begins at that byte."""
    return (place + _ID_BYTES) // 8


def _set_of(place: int) -> int:
    """Where the set begins that this byte is in; sets are of a power of 2."""
    return place & -_SET_BYTES
