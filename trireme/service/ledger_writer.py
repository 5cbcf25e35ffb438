"""Writes the usage ledger: rows in batches, by a thread of its own, so that no request waits for
a disk.

A file that cannot be written is tried again each second. What could not be written until the end
is put aside into a file beside the ledger, and taken in by whoever opens the ledger next.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Final

from trireme.service.ledger import (
    INSERT,
    LedgerError,
    UsageRow,
    open_ledger,
    text_of,
)

log = logging.getLogger(__name__)

MAX_QUEUED: Final = 100_000
WRITE_EVERY_S: Final = 0.25
PRUNE_EVERY_S: Final = 86_400.0
CLOSE_S: Final = 4.0
"""Longest wait for the last rows; two tries at a locked file take half of it."""
_BATCH: Final = 5_000
_RETRY_S: Final = 1.0
_ASIDE, _TAKEN_IN = ".jsonl", ".read"


class Ledger:
    """Takes rows at any time and writes them soon.

    Args:
        keep_days: rows older than this are deleted, at the start and each day.
        dropped: called with a number of rows that are lost: when there is no room for them, or
            when they are none that the file takes.
    """

    def __init__(
        self, path: Path, keep_days: int, dropped: Callable[[int], None] = lambda _rows: None
    ) -> None:
        self._path = path
        self._keep_days = keep_days
        self._dropped = dropped
        self._rows: deque[UsageRow] = deque()
        self._pruned_s: float | None = None
        self._newest: str | None = None
        self._trouble = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage-ledger", daemon=True)

    def add(self, row: UsageRow) -> None:
        """Take a row; it is dropped, and counted, when the file has not kept up."""
        if len(self._rows) >= MAX_QUEUED:
            self._dropped(1)
            return
        self._rows.append(row)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def close(self) -> None:
        """Write what is left, or put it aside, and stop; what is lost is counted. Takes at most
        `CLOSE_S` seconds."""
        self._stop.set()
        self._thread.join(CLOSE_S)
        if self._rows:
            log.error("%d rows of the usage ledger are lost", len(self._rows))
            self._dropped(len(self._rows))
            self._rows.clear()

    def _run(self) -> None:
        while True:
            stopping = self._stop.is_set()
            try:
                with closing(open_ledger(self._path)) as connection:
                    self._write_for_ever(connection)
                    return
            except (LedgerError, sqlite3.Error, OSError) as error:
                self._tell(str(error))
            except Exception as error:  # whatever it is, the next rows are to be written
                self._tell(repr(error), with_trace=True)
            if stopping or len(self._rows) > MAX_QUEUED // 2:
                self._put_aside()
            if stopping:
                return
            self._stop.wait(_RETRY_S)

    def _tell(self, trouble: str, *, with_trace: bool = False) -> None:
        """Log why nothing is written, once for each reason."""
        if trouble != self._trouble:
            log.error("the usage ledger cannot be written: %s", trouble, exc_info=with_trace)
        self._trouble = trouble

    def _write_for_ever(self, connection: sqlite3.Connection) -> None:
        """Returns when everything is written after a stop."""
        if self._pruned_s is None:
            self._prune(connection)
        self._take_in(connection)
        while True:
            stopping = self._stop.is_set()
            while self._rows:
                self._write(connection)
            if self._trouble:
                log.info("the usage ledger is written again")
                self._trouble = ""
            if stopping:
                return
            if monotonic() - (self._pruned_s or 0.0) > PRUNE_EVERY_S:
                self._prune(connection)
            self._stop.wait(WRITE_EVERY_S)

    # ---- rows -----------------------------------------------------------------------------------

    def _write(self, connection: sqlite3.Connection) -> None:
        """Write some rows; they stay in the queue until they are safe."""
        rows = self._first(_BATCH)
        with connection:
            bad = _insert(connection, rows)
        for _ in rows:
            self._rows.popleft()
        self._lose(bad)

    def _first(self, most: int) -> list[UsageRow]:
        """By index: an iterator would not bear those that are added meanwhile."""
        return [self._rows[at] for at in range(min(most, len(self._rows)))]

    def _lose(self, count: int) -> None:
        if count:
            log.error("%d rows are none that the usage ledger takes", count)
            self._dropped(count)

    def _prune(self, connection: sqlite3.Connection) -> None:
        """Delete what is too old beside now and beside the newest row that was there the last
        time, so that a clock that was set wrong since deletes nothing."""
        newest = _newest(connection)
        before, self._newest, self._pruned_s = self._newest or newest, newest, monotonic()
        if before is None:
            return
        try:
            now = min(datetime.now(UTC), datetime.fromisoformat(before))
            oldest = text_of(now - timedelta(days=self._keep_days))
        except (ValueError, OverflowError, TypeError):
            return  # somebody else wrote the row, or the days reach back behind all dates
        with connection:
            gone = connection.execute("DELETE FROM requests WHERE time < ?", (oldest,)).rowcount
        if gone:
            log.info("deleted %d rows of the usage ledger, older than %s", gone, oldest)

    # ---- files of rows beside the ledger --------------------------------------------------------

    def _put_aside(self) -> None:
        """Move the rows into a file beside the ledger; where that fails too they stay here."""
        rows = self._first(len(self._rows))
        if not rows:
            return
        made: str | None = None
        try:
            number, made = tempfile.mkstemp(".part", f"{self._path.name}.", self._path.parent)
            with open(number, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row._asdict()) + "\n" for row in rows)
            aside = Path(made).with_suffix(_ASIDE)
            os.rename(made, aside)
        except Exception as error:
            log.error("the rows of the usage ledger cannot be put aside either: %s", error)
            if made is not None:
                with suppress(OSError):
                    os.unlink(made)
            return
        for _ in rows:
            self._rows.popleft()
        log.warning("%d rows of the usage ledger wait in %s", len(rows), aside)

    def _take_in(self, connection: sqlite3.Connection) -> None:
        """Write the rows that were put aside, by whichever process."""
        for aside in sorted(self._path.parent.glob(f"{_escaped(self._path.name)}.*{_ASIDE}")):
            taken = aside.with_suffix(_TAKEN_IN)
            connection.execute("BEGIN IMMEDIATE")  # of several processes one takes the file
            try:
                with connection:
                    lines = aside.read_text("utf-8", "replace").splitlines()
                    rows = [row for line in lines if (row := _row_of(line)) is not None]
                    bad = len(lines) - len(rows) + _insert(connection, rows)
                    os.rename(aside, taken)  # before the end: no row may count twice
            except FileNotFoundError:
                continue  # another process was faster
            except OSError as error:
                log.error("rows of the usage ledger stay in %s: %s", aside, error)
                continue
            except BaseException:
                with suppress(OSError):
                    os.rename(taken, aside)
                raise
            with suppress(OSError):
                os.unlink(taken)
            log.info("took %d rows of the usage ledger from %s", len(lines) - bad, aside)
            self._lose(bad)


def _insert(connection: sqlite3.Connection, rows: Sequence[UsageRow]) -> int:
    """Insert rows, inside the caller's transaction; returns how many are none that it takes."""
    try:
        connection.execute("SAVEPOINT batch")
        connection.executemany(INSERT, rows)
    except Exception as error:
        if not _is_the_rows(error):
            raise
        connection.execute("ROLLBACK TO batch")
        return sum(not _inserted(connection, row) for row in rows)
    return 0


def _inserted(connection: sqlite3.Connection, row: UsageRow) -> bool:
    try:
        connection.execute(INSERT, row)
    except Exception as error:
        if not _is_the_rows(error):
            raise
        return False
    return True


def _is_the_rows(error: Exception) -> bool:
    """Whether a row is at fault, as with a number of more than 64 bits, and not the file."""
    if isinstance(error, sqlite3.Error):
        return isinstance(
            error,
            sqlite3.DataError
            | sqlite3.IntegrityError
            | sqlite3.InterfaceError
            | sqlite3.ProgrammingError,
        )
    return isinstance(error, OverflowError | ValueError | TypeError)


def _row_of(line: str) -> UsageRow | None:
    try:
        return UsageRow(**json.loads(line))
    except (ValueError, TypeError):
        return None


def _newest(connection: sqlite3.Connection) -> str | None:
    found: tuple[str | None] = connection.execute("SELECT max(time) FROM requests").fetchone()
    return found[0]


def _escaped(name: str) -> str:
    """A pattern for `glob` that is this name."""
    return "".join(f"[{one}]" if one in "*?[" else one for one in name)
