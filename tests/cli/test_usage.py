"""`trireme usage` over a ledger with known rows."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trireme.cli.usage import UsageError, UsageQuery, point, sums
from trireme.service.ledger import UsageRow, default_path, open_ledger

Trireme = Callable[..., subprocess.CompletedProcess[str]]
NOW = datetime(2026, 5, 3, 12, tzinfo=UTC)
ROW = UsageRow(
    "2026-05-01T10:00:00.000Z", "req-1", "host:1", "alice", "/v1/chat/completions", "a", "stop",
    10, 4, 5, 1, 1, 0.5,
)  # fmt: skip
ROWS = [
    ROW,
    ROW._replace(time="2026-05-02T23:59:59.999Z", completion_tokens=1000, outcome="aborted"),
    ROW._replace(time="2026-05-03T11:00:00.000Z", model="b"),
    ROW._replace(time="2026-05-03T11:30:00.000Z", key="bob", route="/v1/embeddings"),
]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    ledger = open_ledger(path)
    with ledger:
        marks = ",".join("?" * len(ROW))
        ledger.executemany(f"INSERT INTO requests VALUES ({marks})", ROWS)
    ledger.close()
    return path


def test_the_table_has_a_row_for_each_key_and_model_and_their_sum(
    trireme: Trireme, db: Path
) -> None:
    shown = trireme("usage", "--db", str(db))
    assert shown.returncode == 0, shown.stderr
    rows = [
        [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]
        for line in shown.stdout.splitlines()
        if "│" in line or "┃" in line
    ]
    assert rows == [
        ["Key", "Model", "Requests", "Prompt", "Cached", "Completion"],
        ["alice", "a", "2", "20", "8", "1,005"],
        ["alice", "b", "1", "10", "4", "5"],
        ["bob", "a", "1", "10", "4", "5"],
        ["All", "", "4", "40", "16", "1,015"],
    ]


def test_json_and_csv_say_the_same(trireme: Trireme, db: Path) -> None:
    flags = ("usage", "--db", str(db), "--by", "day", "--by", "route", "--since", "2026-05-02")
    listed = json.loads(trireme(*flags, "--json").stdout)
    assert listed[0] == {
        "day": "2026-05-02", "route": "/v1/chat/completions", "requests": 1, "prompt_tokens": 10,
        "cached_tokens": 4, "completion_tokens": 1000,
    }  # fmt: skip
    assert [row["route"] for row in listed] == [ROW.route, ROW.route, "/v1/embeddings"]
    joined = ("usage", "--db", str(db), "--by", "day, route", "--since", "2026-05-02")
    read = list(csv.DictReader(io.StringIO(trireme(*joined, "--csv").stdout)))
    assert read == [{name: str(value) for name, value in row.items()} for row in listed]


@pytest.mark.parametrize(
    ("since", "until", "requests"),
    [
        ("", "", 4),
        ("24h", "", 3),
        ("3d", "1d", 1),
        ("2026-05-02", "2026-05-03", 1),
        ("2026-05-03T13:15:00+02:00", "", 1),
        ("", "2026-05-01", 0),
    ],
)
def test_the_time_has_two_bounds(db: Path, since: str, until: str, requests: int) -> None:
    found = sums(UsageQuery(db, since, until, ("key",)), NOW)
    assert sum(row["requests"] for row in found) == requests


def test_nothing_in_the_time_and_no_ledger_are_said(
    trireme: Trireme, db: Path, tmp_path: Path
) -> None:
    empty = trireme("usage", "--db", str(db), "--until", "2020-01-01")
    assert empty.returncode == 0
    assert "no request in this time" in empty.stdout
    none = trireme("usage", "--db", str(tmp_path / "nothing.db"))
    assert none.returncode == 1
    assert "there is no ledger at" in none.stderr
    assert not (tmp_path / "nothing.db").exists()
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at" * 50)
    other = trireme("usage", "--db", str(tmp_path / "text.db"))
    assert other.returncode == 1
    assert "cannot be read" in other.stderr


def test_what_is_no_time_and_no_group_is_refused(db: Path) -> None:
    for text in ("yesterday", "24x", "2026-13-01", "999999w"):
        with pytest.raises(UsageError, match="--since"):
            point("--since", text, NOW)
    with pytest.raises(UsageError, match="--by takes key, model, day, route, not color"):
        sums(UsageQuery(db, "", "", ("key", "color")), NOW)


def test_the_default_ledger_is_in_the_users_folder_for_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_path() == Path("/state/trireme/usage.db")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert default_path() == Path.home() / ".local/state/trireme/usage.db"
