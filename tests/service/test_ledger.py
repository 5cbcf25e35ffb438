"""The usage ledger: rows that arrive, several writers, a file that cannot be written."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from trireme.service import ledger_writer as module
from trireme.service.ledger import (
    LedgerError,
    UsageRow,
    default_path,
    is_passing,
    open_ledger,
    text_of,
    timestamp,
)
from trireme.service.ledger_writer import Ledger

ROW = UsageRow(
    text_of(datetime.now(UTC)), "req-1", "host:1", "alice", "/v1/embeddings", "m", "ok",
    10, 4, 5, 1, 1, 0.5,
)  # fmt: skip


def read(path: Path) -> list[sqlite3.Row]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        if not connection.execute("PRAGMA user_version").fetchone()[0]:
            return []  # it is being made
        return connection.execute("SELECT * FROM requests ORDER BY time").fetchall()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rows_are_there_after_a_close_and_soon_without_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "usage.db"
    ledger = Ledger(path, 400)
    ledger.start()
    ledger.add(ROW)
    until(lambda: path.exists() and read(path))
    for number in range(12_000):
        ledger.add(ROW._replace(request_id=str(number)))
    ledger.close()
    found = read(path)
    assert len(found) == 12_001
    assert dict(found[0]) == ROW._asdict()


def test_several_writers_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    ledgers = [Ledger(path, 400) for _ in range(4)]
    for ledger in ledgers:
        ledger.start()
    for _ in range(500):
        for ledger in ledgers:
            ledger.add(ROW)
    for ledger in ledgers:
        ledger.close()
    assert len(read(path)) == 2000


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else writes the file meanwhile."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def written(path: Path, *rows: UsageRow) -> list[str]:
    """The request ids that are there after a ledger was opened, got these rows, and was closed."""
    ledger = Ledger(path, 30)
    ledger.start()
    for row in rows:
        ledger.add(row)
    ledger.close()
    return [row["request_id"] for row in read(path)]


def test_old_rows_are_deleted(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    old = ROW._replace(time=text_of(datetime.now(UTC) - timedelta(days=31)), request_id="old")
    assert written(path, old, ROW) == ["old", "req-1"]
    assert written(path) == ["req-1"]


def test_a_clock_that_jumps_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(days=500)

    path = tmp_path / "usage.db"
    assert written(path, ROW) == ["req-1"]
    monkeypatch.setattr(module, "datetime", Ahead)
    late = ROW._replace(time=text_of(Ahead.now()), request_id="late")
    assert written(path, late) == ["req-1", "late"]
    monkeypatch.undo()
    assert written(path) == ["req-1", "late"], "a row of the future is no measure"


def test_a_clock_that_jumps_in_service_deletes_nothing_the_next_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PRUNE_EVERY_S", 0.0)
    path = tmp_path / "usage.db"
    with closing(open_ledger(path)) as connection:
        ledger = Ledger(path, 30)
        ahead = ROW._replace(time=text_of(datetime.now(UTC) + timedelta(days=500)))
        for row in (ROW, ahead):
            ledger._prune(connection)
            with connection:
                connection.execute(module.INSERT, row)
        ledger._prune(connection)
    assert len(read(path)) == 2


def test_a_locked_file_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "usage.db"
    open_ledger(path).close()
    monkeypatch.setattr(module, "_RETRY_S", 0.05)
    ledger = Ledger(path, 30)
    with locked(path):
        ledger.start()
        ledger.add(ROW)
        time.sleep(1.3)
    until(lambda: read(path))
    ledger.close()
    assert len(read(path)) == 1


def test_a_locked_file_holds_up_no_end_and_its_rows_are_there_after_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "usage[1].db"
    lost: list[int] = []
    assert written(path, ROW) == ["req-1"]
    ledger = Ledger(path, 400, lost.append)
    with locked(path):
        ledger.start()
        for number in range(10):
            ledger.add(ROW._replace(request_id=str(number)))
        time.sleep(0.1)
        begun = time.monotonic()
        ledger.close()
        assert time.monotonic() - begun < module.CLOSE_S
        assert len(read(path)) == 1
    [aside] = tmp_path.glob("*.jsonl")
    assert str(aside) in caplog.text
    assert aside.stat().st_mode & 0o777 == 0o600
    assert sorted(written(path)) == [*map(str, range(10)), "req-1"]
    assert lost == []
    assert not list(tmp_path.glob("*.jsonl"))
    assert sorted(written(path)) == [*map(str, range(10)), "req-1"], "each counts once"


def test_rows_that_wait_too_long_are_put_aside_and_taken_in_by_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "usage.db"
    monkeypatch.setattr(module, "MAX_QUEUED", 4)
    monkeypatch.setattr(module, "_RETRY_S", 0.05)
    assert written(path, ROW) == ["req-1"]
    lost: list[int] = []
    ledger = Ledger(path, 400, lost.append)
    with locked(path):
        ledger.start()
        for _ in range(3):
            ledger.add(ROW)
        until(lambda: list(tmp_path.glob("*.jsonl")))
        ledger.add(ROW)
    until(lambda: len(read(path)) == 5)
    ledger.close()
    assert (lost, list(tmp_path.glob("*.jsonl"))) == ([], [])


def test_a_full_disk_passes(tmp_path: Path) -> None:
    with closing(open_ledger(tmp_path / "usage.db")) as connection:
        connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(sqlite3.OperationalError, match="full") as caught, connection:
            connection.executemany(module.INSERT, [ROW._replace(model="m" * 9000)] * 9)
    assert is_passing(caught.value)
    assert not is_passing(sqlite3.OperationalError("no such table"))


def test_a_line_that_is_no_row_keeps_no_other_from_being_taken_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "usage.db"
    whole = module.json.dumps(ROW._asdict())
    (tmp_path / "usage.db.x.jsonl").write_text(f"{whole}\n{whole[:20]}\n[1]\n")
    assert written(path) == ["req-1"]
    assert "2 rows are none" in caplog.text


@pytest.mark.parametrize(
    "bad",
    [
        ROW._replace(completion_tokens=2**70),
        ROW._replace(model="\ud800"),
        ROW._replace(route=None),  # type: ignore[arg-type]
        ROW._replace(key=["a"]),  # type: ignore[arg-type]
    ],
)
def test_a_row_that_the_file_does_not_take_costs_no_other(tmp_path: Path, bad: UsageRow) -> None:
    path = tmp_path / "usage.db"
    lost: list[int] = []
    ledger = Ledger(path, 400, lost.append)
    for row in (ROW, bad, ROW):
        ledger.add(row)
    ledger.start()
    until(lambda: path.exists() and len(read(path)) == 2)
    ledger.add(ROW)
    until(lambda: len(read(path)) == 3)
    ledger.close()
    assert lost == [1]


def test_no_fault_ends_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "usage.db"
    faults = [RuntimeError("odd"), MemoryError()]

    def opened(path: Path) -> sqlite3.Connection:
        if faults:
            raise faults.pop()
        return open_ledger(path)

    monkeypatch.setattr(module, "open_ledger", opened)
    monkeypatch.setattr(module, "_RETRY_S", 0.02)
    ledger = Ledger(path, 400)
    ledger.start()
    ledger.add(ROW)
    until(lambda: path.exists() and read(path))
    ledger.close()


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    assert written(path, ROW) == ["req-1"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_may_pass_is_told_from_what_does_not(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    open_ledger(path).close()
    with closing(sqlite3.connect(path)) as holder:
        holder.executescript("PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE")
        with pytest.raises(LedgerError, match="locked") as caught:
            open_ledger(path)
    assert caught.value.is_passing
    with pytest.raises(LedgerError) as caught:
        open_ledger(tmp_path)
    assert not caught.value.is_passing


def test_without_a_home_there_is_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(LedgerError, match="no home"):
        default_path()


def test_what_has_no_room_is_counted_and_what_waits_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 3)
    monkeypatch.setattr(module, "_RETRY_S", 0.02)
    blocked = tmp_path / "folder"
    blocked.touch()
    lost: list[int] = []
    ledger = Ledger(blocked / "usage.db", 400, lost.append)
    ledger.start()
    for _ in range(5):
        ledger.add(ROW)
    assert lost == [1, 1]
    until(lambda: "cannot be written" in caplog.text)
    blocked.unlink()
    until(lambda: blocked.is_dir() and len(read(blocked / "usage.db")) == 3)
    ledger.close()
    assert lost == [1, 1]


def test_what_cannot_be_written_at_the_end_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    lost: list[int] = []
    ledger = Ledger(tmp_path / "file" / "usage.db", 400, lost.append)
    ledger.start()
    ledger.add(ROW)
    ledger.close()
    assert lost == [1]
    assert "1 rows" in caplog.text


def test_a_file_of_something_else_or_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("no database, but long enough to be looked at" * 50)
    with pytest.raises(LedgerError, match="other"):
        open_ledger(other)
    newer = tmp_path / "newer"
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="newer version"):
        open_ledger(newer)


def test_times_sort_as_texts() -> None:
    assert timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1_767_225_600.25) == "2026-01-01T00:00:00.250Z"
