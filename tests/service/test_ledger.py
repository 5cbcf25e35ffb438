"""The usage ledger: rows that arrive, several writers, a file that cannot be written."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from trireme.service import ledger as module
from trireme.service.ledger import Ledger, LedgerError, UsageRow, open_ledger, text_of, timestamp

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


def test_old_rows_are_deleted(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    old = text_of(datetime.now(UTC) - timedelta(days=31))
    first = Ledger(path, 30)
    first.add(ROW._replace(time=old, request_id="old"))
    first.add(ROW)
    first.start()
    until(lambda: path.exists() and [row["request_id"] for row in read(path)] == ["req-1"])
    first.close()


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
