"""The overload sweep: what counts, what is promised, and one short sweep for real."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.overload import app, verdicts
from benchmarks.overload_load import Level, Plan, Seen, level_of

PLAN = Plan(tokens=10, running=4, queue=4, deadline_s=2.0)
GOOD = Level(
    factor=1.0,
    offered_per_s=10.0,
    goodput_tokens_per_s=100.0,
    goodput_requests_per_s=10.0,
    rejected={},
    rejected_p50_ms=math.nan,
    rejected_p99_ms=math.nan,
    ttft_p50_ms=1.0,
    ttft_p99_ms=2.0,
    e2e_p50_ms=3.0,
    e2e_p99_ms=4.0,
    late=0,
    faults=0,
    resets=0,
    memory_mib={"gateway": (50.0, 51.0), "worker": (60.0, 60.0)},
    cores={},
    back_to_normal_s=0.1,
)


def missed(*levels: Level) -> list[str]:
    return [text.split(":")[0] for text, kept in verdicts(levels) if not kept]


def test_what_is_as_promised_is_kept() -> None:
    full = replace(GOOD, factor=4.0, goodput_tokens_per_s=96.0, rejected={"503": 9})
    assert missed(GOOD, replace(full, rejected_p99_ms=49.0)) == []


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"goodput_tokens_per_s": 94.0}, "goodput up to 4x at least 95% of the peak"),
        ({"rejected": {"503": 1}, "rejected_p99_ms": 51.0}, "rejections within 50 ms"),
        ({"memory_mib": {"gateway": (50.0, 90.0)}}, "flat memory"),
        ({"faults": 1}, "no 5xx but 503 and 504"),
        ({"resets": 1}, "no resets"),
        ({"back_to_normal_s": 11.0}, "back to normal within 10 s"),
    ],
)
def test_what_is_not_as_promised_is_missed(fields: dict[str, object], text: str) -> None:
    assert missed(GOOD, replace(GOOD, factor=4.0, **fields)) == [text]  # type: ignore[arg-type]


def test_only_whole_answers_in_time_are_goodput() -> None:
    def seen(due_s: float, status: int, whole_s: float, done: bool) -> Seen:
        return Seen(due_s, status, 0.1, whole_s, whole_s, done)

    requests = [
        seen(10.0, 200, 1.0, True),
        seen(10.5, 200, 1.9, True),
        seen(11.0, 200, 2.5, True),  # after its deadline
        seen(11.0, 200, 2.0, False),  # ended by it
        seen(11.0, 503, 0.01, False),
        seen(11.0, 500, 0.01, False),
        seen(11.0, 0, 0.01, False),
        seen(9.0, 503, 0.01, False),  # before the window
    ]
    level = level_of(2.0, 5.0, requests, (10.0, 14.0), PLAN, GOOD.memory_mib, {}, 0.1)
    assert level.goodput_requests_per_s == 2 / 4
    assert level.goodput_tokens_per_s == 2 / 4 * PLAN.tokens
    assert level.rejected == {"500": 1, "503": 1}
    assert (level.late, level.faults, level.resets) == (2, 1, 1)
    assert level.rejected_p99_ms == 10.0


def test_a_sweep_writes_what_it_measured(tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    args = "--factors 3 --seconds 2 --running 4 --queue 4 --tokens 8 --deadline-s 5 --out"
    result = CliRunner().invoke(app, [*args.split(), str(out)])
    assert "goodput" in result.output, result.output
    written = json.loads(out.read_text())
    [level] = written["levels"]
    assert written["capacity_requests_per_s"] > 0
    assert level["factor"] == 3
    assert level["rejected"]["503"] > 0, "a queue of four is full at three times the capacity"
    assert level["faults"] == level["resets"] == 0
    assert out.with_suffix(".png").stat().st_size > 0
    assert out.with_suffix(".svg").read_text().startswith("<?xml")
