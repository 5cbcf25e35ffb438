"""Token buckets and the table that holds their states."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.buckets import TABLE_BYTES, WINDOW_S, Table, left, taken, wait_s

ARRIVALS = st.lists(st.tuples(st.floats(0, 40), st.integers(1, 100)), min_size=1, max_size=60)
"""(seconds since the one before, amount)"""


def admitted(limit: int, arrivals: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    full_at, now, found = 0.0, 0.0, []
    for pause_s, amount in arrivals:
        now += pause_s
        if amount <= limit and not wait_s(limit, full_at, amount, now):
            full_at = taken(limit, full_at, amount, now)
            found.append((now, amount))
    return found


@given(st.integers(1, 200), ARRIVALS)
def test_no_window_has_more_than_a_burst_and_what_flows_in_meanwhile(
    limit: int, arrivals: list[tuple[float, int]]
) -> None:
    found = admitted(limit, arrivals)
    for first, (begin, _) in enumerate(found):
        used = 0
        for at, amount in found[first:]:
            used += amount
            assert used <= limit * (1 + (at - begin) / WINDOW_S) + 1e-6


@given(st.integers(1, 200), ARRIVALS, st.integers(1, 200))
def test_nothing_starves_it_fits_after_the_time_that_it_is_told(
    limit: int, arrivals: list[tuple[float, int]], amount: int
) -> None:
    full_at, now = 0.0, 0.0
    for pause_s, used in arrivals:  # used without asking, as corrections do
        now += pause_s
        full_at = taken(limit, full_at, used, now)
    wanted = min(amount, limit)
    told_s = wait_s(limit, full_at, wanted, now)
    assert wait_s(limit, full_at, wanted, now + told_s + 1e-6) == 0
    if told_s > 1e-3:
        assert wait_s(limit, full_at, wanted, now + told_s / 2) > 0


@given(
    st.integers(1, 200), st.lists(st.tuples(st.floats(0, 40), st.integers(1, 100), st.floats(0, 1)))
)
def test_with_corrections_the_sum_of_what_was_used_stays_below_the_limit(
    limit: int, arrivals: list[tuple[float, int, float]]
) -> None:
    """Each takes an amount, and gives back a share of it when the next one comes."""
    full_at, now, used = 0.0, 0.0, 0.0
    owed = 0.0
    for pause_s, amount, share in arrivals:
        now += pause_s
        full_at = taken(limit, full_at, -owed, now) if owed else full_at
        owed = 0.0
        if amount <= limit and not wait_s(limit, full_at, amount, now):
            full_at = taken(limit, full_at, amount, now)
            owed = amount * share
            used += amount - owed
            assert used <= limit * (1 + now / WINDOW_S) + 1e-6


def test_what_is_left_fills_with_time_up_to_the_limit() -> None:
    full_at = taken(60, 0.0, 40, 100.0)
    assert [round(left(60, full_at, 100.0 + s)) for s in (0, 10, 39, 41, 1000)] == [
        20, 30, 59, 60, 60,
    ]  # fmt: skip


def set_row(table: Table, owner: bytes, first: float, second: float) -> None:
    at = table.acquire(owner)
    table.numbers[at], table.numbers[at + 1] = first, second
    table.release(at)


def test_a_table_keeps_rows_apart_and_reuses_the_idle_ones() -> None:
    table = Table()
    same_set = [bytes([7, 0, 0, 0]) + bytes([n]) * 12 for n in range(1, 12)]
    for number, owner in enumerate(same_set[:8], start=1):
        set_row(table, owner, float(number), 100.0 - number)
    assert [table.peek(owner)[0] for owner in same_set[:8]] == [1, 2, 3, 4, 5, 6, 7, 8]
    at = table.acquire(same_set[8])  # takes the place of the one that is full first
    assert tuple(table.numbers[at : at + 2]) == (0.0, 0.0)
    assert table.peek(same_set[7]) == (0.0, 0.0)
    assert table.peek(same_set[0]) == (1.0, 99.0)


CHILD = """
import sys
from gateway import buckets
from gateway.buckets import Table
buckets._LOCK_WAIT_S = 60.0
table = Table(int(sys.argv[1]))
for _ in range(2000):
    at = table.acquire(b"0123456789abcdef")
    table.numbers[at] += 1
    table.release(at)
"""


def test_processes_share_a_table_and_lose_nothing() -> None:
    """As long as each waits for the lock: a holder that gets no CPU for the time that a gateway
    waits is passed over, which may lose a count and is meant to."""
    with tempfile.TemporaryFile() as file:
        file.truncate(TABLE_BYTES)
        command = [sys.executable, "-c", CHILD, str(file.fileno())]
        children = [subprocess.Popen(command, pass_fds=(file.fileno(),)) for _ in range(3)]
        assert [child.wait(60) for child in children] == [0, 0, 0]
        assert Table(file.fileno()).peek(b"0123456789abcdef")[0] == 6000


def test_a_process_that_never_lets_go_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(TABLE_BYTES)
        os.set_inheritable(file.fileno(), True)
        code = CHILD.partition("for")[0] + (
            "table.acquire(b'0123456789abcdef')\nprint('held', flush=True)\ninput()\n"
        )
        command = [sys.executable, "-c", code, str(file.fileno())]
        with subprocess.Popen(
            command, pass_fds=(file.fileno(),), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"held\n"
            table = Table(file.fileno())
            begun = time.monotonic()
            for _ in range(200):
                table.release(table.acquire(b"0123456789abcdef"))
            assert time.monotonic() - begun < 0.5
            child.kill()
    assert caplog.text.count("keeps limits locked") == 1


def test_a_file_that_cannot_be_locked_is_no_busy_one() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(TABLE_BYTES)
        table = Table(file.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        table.acquire(b"0123456789abcdef")
