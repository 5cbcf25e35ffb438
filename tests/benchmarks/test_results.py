"""The rows of the results, their shares of the bound, and the tables."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from benchmarks.bound import Bound
from benchmarks.measure import Measured, Result
from benchmarks.samples import Sample
from benchmarks.stats import Run
from benchmarks.summary import Row, as_json, failures, rows_of, times_faster
from benchmarks.tables import markdown, terminal_tables
from benchmarks.workloads import WORKLOADS, Cell, cells_of

SECONDS = {"layers/1": [0.01], "head/1": [0.0], "chunk/100": [0.1]}
BOUND = Bound.of(
    {"seconds": SECONDS, "dtype": "float32", "threads": 1, "parameters": 1, "torch": "2"}
)
(ONE,) = cells_of(WORKLOADS["decode"], [1])
DIFFERENT, SAME = cells_of(WORKLOADS["prefix"], [])


def run(seconds: float, *, ttft_s: float = 0.1, prompt: int | None = 50, cached: int = 0) -> Run:
    sample = Sample(0, seconds, [ttft_s], tokens=128, prompt_tokens=prompt, cached_tokens=cached)
    return Run.of(1, [sample])


def results(*runs: tuple[str, Cell, Run]) -> list[Result]:
    return [Result(system, cell, 0, one) for system, cell, one in runs]


def test_a_share_is_the_median_rate_beside_the_bound() -> None:
    """50 prompt tokens of 1 ms and 127 steps of 10 ms: 1.32 s at best."""
    runs = [run(2.64), run(1.32), run(26.4)]
    rows = rows_of([Result("t", ONE, n, one) for n, one in enumerate(runs)], BOUND)
    assert rows[0].bound_tokens_per_s == pytest.approx(128 / 1.32)
    assert rows[0].share_of_bound == pytest.approx(0.5)


def test_tokens_from_a_cache_are_no_work() -> None:
    (row,) = rows_of(results(("t", ONE, run(2, cached=50))), BOUND)
    assert row.bound_tokens_per_s == pytest.approx(128 / 1.27)


def test_a_server_that_does_not_count_is_held_to_anothers_count() -> None:
    rows = rows_of(results(("silent", ONE, run(2, prompt=None)), ("t", ONE, run(2))), BOUND)
    assert rows[0].bound_tokens_per_s == rows[1].bound_tokens_per_s


def test_without_a_bound_there_is_no_share() -> None:
    (row,) = rows_of(results(("t", ONE, run(2))), None)
    assert row.share_of_bound is None


def test_rows_stand_in_the_order_of_the_first_repeat() -> None:
    turned = [Result("b", SAME, 1, run(1)), Result("a", ONE, 1, run(1))]
    first = results(("a", ONE, run(1)), ("b", ONE, run(1)), ("b", SAME, run(1)))
    rows = rows_of([*first, *turned], None)
    assert [(row.system, row.cell, len(row.runs)) for row in rows] == [
        ("a", ONE, 2),
        ("b", ONE, 1),
        ("b", SAME, 2),
    ]


def test_a_shared_prefix_is_compared_with_the_same_systems_own_prefixes() -> None:
    rows = rows_of(
        results(
            ("a", DIFFERENT, run(9, ttft_s=8)),
            ("b", DIFFERENT, run(9, ttft_s=3)),
            ("a", SAME, run(9, ttft_s=0.5)),
        ),
        None,
    )
    assert times_faster(rows[2], rows) == pytest.approx(16)
    assert times_faster(rows[0], rows) is None
    assert as_json(rows)[0]["rows"][2]["ttft_times_shorter"] == pytest.approx(16)


def failing() -> list[Row]:
    bad = Run.of(1, [Sample(0, 1, error="HTTP 503: [full]"), Sample(0, 2, [1.0], tokens=4)])
    return rows_of(results(("t", ONE, bad), ("u", ONE, run(2))), BOUND)


def test_what_failed_is_named_with_its_reason() -> None:
    lines = failures(Measured(lost={"v": "no answer"}), failing())
    assert lines == [
        "t, decode, 1: 1 requests failed, the first with: HTTP 503: [full]",
        "v was lost: no answer",
    ]


@pytest.mark.parametrize("width", [80, 140])
def test_a_table_fits_and_shows_failures(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    for table in terminal_tables(failing(), cpu=True, width=width):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 failed" in text
    assert "tokens/s" in text
    assert f"{128 / 2:.1f}" in text
    assert "…" not in text


def test_a_page_has_one_line_a_row() -> None:
    lines = markdown(failing(), cpu=False).splitlines()
    assert lines[0] == "decode: mostly decoding; 48 words in, 128 tokens out"
    assert lines[2].startswith("| clients | system | tokens/s | of bound | TTFT p50 |")
    assert lines[4].startswith("| 1 | t (1 failed) | 2.00 (2.00–2.00) |")
    assert lines[5].startswith("| 1 | u | 64.0 (64.0–64.0) | 66 % |")
