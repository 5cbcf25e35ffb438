"""The usage ledger's file: a row for each request, in SQLite, which gateways on one machine share.

What is in the rows was decided by who wrote them; `gateway` writes them through
`trireme.service.ledger_writer`, `trireme usage` reads them.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple, get_type_hints

_BUSY_S: Final = 1.0
_VERSION: Final = 1
_PASSING: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
    }
)
_PASSING_ERRNO: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ESTALE}
)


class LedgerError(Exception):
    """The file cannot be used; the message is one line for a person.

    Attributes:
        is_passing: whether it may be usable later as it is: it is locked, the disk is full or
            fails just now.
    """

    is_passing = False


def is_passing(error: BaseException) -> bool:
    """Whether the same may succeed later: it is the file's state, not what was asked of it."""
    if isinstance(error, sqlite3.Error):
        # the low byte is the kind, above it stand details
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING
    return isinstance(error, OSError) and error.errno in _PASSING_ERRNO


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
INSERT: Final = f"INSERT INTO requests VALUES ({', '.join('?' * len(UsageRow._fields))})"


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
    """Where the ledger is unless somebody says otherwise: the user's folder for state.

    Raises:
        LedgerError: the user has no home.
    """
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return user_path(base) / "trireme" / "usage.db"


def user_path(text: str) -> Path:
    """The path, with the user's home for a `~`.

    Raises:
        LedgerError: the user has none.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise LedgerError(f"{text}: this user has no home directory") from error


def open_ledger(path: Path) -> sqlite3.Connection:
    """The file for reading and writing; when it is not there it is made, for its owner alone.

    Raises:
        LedgerError: it cannot be opened, or is something else.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
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
        reason = error.strerror if isinstance(error, OSError) else error
        refused = LedgerError(f"{path}: {reason}")
        refused.is_passing = is_passing(error)
        raise refused from error
