"""What a gateway finds or makes before its processes start."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from gateway.buckets import TABLE_BYTES
from gateway.config import GatewaySettings
from gateway.start import shared_table, usage_db
from trireme.service.ledger import LedgerError, open_ledger


def test_a_ledger_that_is_locked_is_kept_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "usage.db"
    open_ledger(path).close()
    with closing(sqlite3.connect(path)) as holder:
        holder.executescript("PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE")
        assert usage_db(GatewaySettings(usage_db=str(path))) == path
    assert "cannot be written yet" in caplog.text


def test_a_ledger_that_was_asked_for_and_can_never_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "usage.db"):
        with pytest.raises(LedgerError, match="--usage-db"):
            usage_db(GatewaySettings(usage_db=str(path)))


def test_without_a_home_the_default_ledger_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert usage_db(GatewaySettings(usage_db="auto")) is None
    assert "no usage ledger is kept" in caplog.text
    with pytest.raises(LedgerError, match=r"--usage-db .*no home"):
        usage_db(GatewaySettings(usage_db="~/usage.db"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is a file")
def test_the_table_of_limits_needs_no_room_on_any_disk() -> None:
    """A process that writes into a mapped file is killed where a full disk has no room for it."""
    with shared_table() as table:
        assert os.readlink(f"/proc/self/fd/{table.fileno()}").startswith("/memfd:")


def test_the_table_of_limits_has_room_for_all_of_it() -> None:
    with shared_table() as table:
        found = os.fstat(table.fileno())
        assert found.st_size == TABLE_BYTES
        assert found.st_blocks * 512 >= TABLE_BYTES
