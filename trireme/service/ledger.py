"""The usage ledger: a row for each request, in an SQLite file that gateways on one machine share.

Rows are written in batches by a thread of their own, so that no request waits for a disk. What is
in them was decided by the writer's caller; `trireme usage` reads them.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Final, NamedTuple, get_type_hints

log = logging.getLogger(__name__)

MAX_QUEUED: Final = 100_000
WRITE_EVERY_S: Final = 0.25
PRUNE_EVERY_S: Final = 86_400.0
_BATCH: Final = 5_000
_BUSY_S: Final = 10.0
_RETRY_S: Final = 15.0
_VERSION: Final = 1


class LedgerError(Exception):
    """The file cannot be used; the message is one line for a person."""


class UsageRow(NamedTuple):
    """One request. The table's columns are these, in this order.

    Attributes:
        time: of its arrival, UTC, as `timestamp` makes it.
        key: the name of the caller's key, `-` without keys.
        outcome: `stop` or `length`; `ok` of what has no such reason; `aborted` when the client
            left; else the error's code.
        cached_tokens: of the prompt's. reasoning_tokens: of the completion's.
        attempts: how often it was sent to a worker; of several prompts the one sent most often.
    """

    time: str
    request_id: str
    gateway: str
    key: str
    route: str
    model: str
    outcome: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    attempts: int
    duration_s: float


_TYPES: Final = {str: "TEXT", int: "INTEGER", float: "REAL"}
_COLUMNS: Final = ", ".join(
    f"{name} {_TYPES[kind]} NOT NULL" for name, kind in get_type_hints(UsageRow).items()
)
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS requests ({_COLUMNS});
CREATE INDEX IF NOT EXISTS requests_by_time ON requests (time);
PRAGMA user_version = {_VERSION};
"""
_INSERT: Final = f"INSERT INTO requests VALUES ({', '.join('?' * len(UsageRow._fields))})"


def timestamp(seconds: float) -> str:
    """Unix seconds as `2026-01-31T12:00:00.000Z`: texts that sort as the times do."""
    whole = int(seconds)
    return f"{_second(whole)}.{int(1000 * (seconds - whole)):03d}Z"


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def text_of(time: datetime) -> str:
    """The same for a time that knows its zone."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def default_path() -> Path:
    """Where the ledger is unless somebody says otherwise: the user's folder for state."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "trireme" / "usage.db"


def open_ledger(path: Path) -> sqlite3.Connection:
    """The file for reading and writing, made when it is not there.

    Raises:
        LedgerError: it cannot be opened, or is something else.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        connection = sqlite3.connect(path, timeout=_BUSY_S)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise LedgerError(f"{path} was written by a newer version of Trireme")
            if version < _VERSION:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_SCHEMA)
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"{path}: {error}") from error


class Ledger:
    """Takes rows at any time and writes them soon.

    Args:
        keep_days: rows older than this are deleted, at the start and each day.
        dropped: called with a number of rows when there is no room for them.
    """

    def __init__(
        self, path: Path, keep_days: int, dropped: Callable[[int], None] = lambda _rows: None
    ) -> None:
        self._path = path
        self._keep_days = keep_days
        self._dropped = dropped
        self._rows: deque[UsageRow] = deque()
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
        """Write what is left and stop; what cannot be written is dropped, and counted."""
        self._stop.set()
        self._thread.join()
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
            except (LedgerError, sqlite3.Error) as error:
                log.error("the usage ledger cannot be written: %s", error)
            if stopping:
                return
            self._stop.wait(_RETRY_S)

    def _write_for_ever(self, connection: sqlite3.Connection) -> None:
        """Returns when everything is written after a stop."""
        pruned_s: float | None = None
        while True:
            stopping = self._stop.is_set()
            while self._rows:
                self._write(connection)
            if stopping:
                return
            if pruned_s is None or monotonic() - pruned_s > PRUNE_EVERY_S:
                self._prune(connection)
                pruned_s = monotonic()
            self._stop.wait(WRITE_EVERY_S)

    def _write(self, connection: sqlite3.Connection) -> None:
        """Write some rows; they stay in the queue until they are safe."""
        count = min(_BATCH, len(self._rows))
        with connection:
            # by index: an iterator would not bear those that are added meanwhile
            connection.executemany(_INSERT, [self._rows[at] for at in range(count)])
        for _ in range(count):
            self._rows.popleft()

    def _prune(self, connection: sqlite3.Connection) -> None:
        oldest = text_of(datetime.now(UTC) - timedelta(days=self._keep_days))
        with connection:
            gone = connection.execute("DELETE FROM requests WHERE time < ?", (oldest,)).rowcount
        if gone:
            log.info("deleted %d rows of the usage ledger, older than %s", gone, oldest)
