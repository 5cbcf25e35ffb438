"""`trireme usage`: who used what, summed from the gateways' ledger on this machine."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trireme.service.ledger import LedgerError, default_path, text_of

GROUPS: Final[Mapping[str, str]] = {
    "key": "key",
    "model": "model",
    "day": "substr(time, 1, 10)",
    "route": "route",
}
"""What sums can be taken by, and its expression over the ledger's columns."""
_SUMS: Final[Mapping[str, str]] = {
    "requests": "count(*)",
    "prompt_tokens": "sum(prompt_tokens)",
    "cached_tokens": "sum(cached_tokens)",
    "completion_tokens": "sum(completion_tokens)",
}
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class UsageError(Exception):
    """The message is one line for a person."""


@dataclass(frozen=True)
class UsageQuery:
    """What to sum.

    Attributes:
        db: the ledger; None is the default one.
        since, until: ISO dates or times, or so long ago, such as 24h or 7d; empty is no bound. A
            date without a time is its beginning; without a zone it is UTC.
        by: names of `GROUPS`, the first is the outermost.
    """

    db: Path | None
    since: str
    until: str
    by: tuple[str, ...]


def show_usage(query: UsageQuery, console: Console, form: str) -> int:
    """Show the sums as a `table`, `json` or `csv`; returns the exit code."""
    try:
        rows = sums(query, datetime.now(UTC))
    except UsageError as error:
        Console(stderr=True).print(Text.assemble(("✗", "bold red"), f" {error}"), soft_wrap=True)
        return 1
    if form == "json":
        console.file.write(json.dumps(rows) + "\n")
    elif form == "csv":
        writer = csv.DictWriter(console.file, [*query.by, *_SUMS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        console.print(table(query.by, rows))
    return 0


def sums(query: UsageQuery, now: datetime) -> list[dict[str, Any]]:
    """One entry for each group that has a request in the time.

    Raises:
        UsageError: there is no ledger, or a time or a group is none.
    """
    unknown = [name for name in query.by if name not in GROUPS]
    if unknown or not query.by:
        raise UsageError(f"--by takes {', '.join(GROUPS)}, not {', '.join(unknown) or 'nothing'}")
    try:
        path = query.db or default_path()
    except LedgerError as error:
        raise UsageError(f"{error}; --db says where the ledger is") from error
    if not path.is_file():
        raise UsageError(
            f"there is no ledger at {path}: a gateway makes it when it starts "
            "(--usage-db says where)"
        )
    names = ", ".join(f"{GROUPS[name]} AS {name}" for name in query.by)
    totals = ", ".join(f"{expression} AS {name}" for name, expression in _SUMS.items())
    bounds = {
        "since": point("--since", query.since, now),
        "until": point("--until", query.until, now),
    }
    places = ", ".join(str(1 + place) for place in range(len(query.by)))
    statement = (
        f"SELECT {names}, {totals} FROM requests WHERE (:since IS NULL OR time >= :since)"
        f" AND (:until IS NULL OR time < :until) GROUP BY {places} ORDER BY {places}"
    )
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as ledger:
            ledger.row_factory = sqlite3.Row
            return [dict(row) for row in ledger.execute(statement, bounds)]
    except sqlite3.Error as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def point(flag: str, text: str, now: datetime) -> str | None:
    """A time as the ledger has it; None for an empty text."""
    if not text:
        return None
    try:
        if ago := re.fullmatch(r"(\d{1,6})([mhdw])", text):
            return text_of(now - timedelta(**{_UNITS[ago[2]]: int(ago[1])}))
        time = datetime.fromisoformat(text)
        return text_of(time if time.tzinfo else time.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise UsageError(
            f"{flag} {text[:40]!r} is no date such as 2026-01-31 and no time ago such as 24h or 7d"
        ) from None


def table(by: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each group, and their sum."""
    drawn = Table(header_style="bold", show_footer=len(rows) > 1)
    if not rows:
        drawn.caption = "no request in this time"
    for place, name in enumerate(by):
        drawn.add_column(name.capitalize(), "" if place else "All", overflow="fold")
    for name in _SUMS:
        total = sum(row[name] for row in rows)
        title = name.removesuffix("_tokens").capitalize()
        drawn.add_column(title, f"{total:,}", justify="right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(str(row[name])) for name in by), *(f"{row[name]:,}" for name in _SUMS))
    return drawn
