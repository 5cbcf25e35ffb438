"""Which cells are measured, and in which order."""

from __future__ import annotations

import pytest

from benchmarks.measure import Plan, load_of
from benchmarks.systems import Target
from benchmarks.workloads import WORKLOADS, cells_of, chosen


def test_a_closed_loop_has_a_cell_for_each_number_of_clients() -> None:
    cells = cells_of(WORKLOADS["decode"], [1, 8])
    assert [(cell.loop, cell.clients, cell.label) for cell in cells] == [
        ("closed", 1, "1"),
        ("closed", 8, "8"),
    ]


def test_rates_make_open_loops_instead() -> None:
    cells = cells_of(WORKLOADS["decode"], [1, 8], [0.5, 2])
    assert [(cell.loop, cell.level) for cell in cells] == [("open", 0.5), ("open", 2)]


@pytest.mark.parametrize(
    ("name", "labels"), [("prefix", ["different", "same"]), ("long", ["8 + 4"])]
)
def test_some_workloads_have_numbers_of_their_own(name: str, labels: list[str]) -> None:
    assert [cell.label for cell in cells_of(WORKLOADS[name], [1, 32], [5])] == labels


def test_workloads_are_chosen_by_name_and_changed_by_numbers() -> None:
    assert [workload.name for workload in chosen("all")] == list(WORKLOADS)
    (short,) = chosen("short", tokens=5)
    assert (short.prompt_words, short.tokens) == (48, 5)
    with pytest.raises(ValueError, match="no workload 'fast'; there are decode"):
        chosen("decode,fast")


def test_repeats_run_all_cells_and_systems_in_turn_and_back() -> None:
    one, two = cells_of(WORKLOADS["decode"], [1, 8])
    plan = Plan([one, two], repeats=2)
    assert plan.steps(["a", "b"]) == [
        *[(0, one, "a"), (0, one, "b"), (0, two, "a"), (0, two, "b")],
        *[(1, two, "b"), (1, two, "a"), (1, one, "b"), (1, one, "a")],
    ]


def test_a_slow_system_runs_at_some_levels_alone() -> None:
    cells = cells_of(WORKLOADS["decode"], [1, 8])
    plan = Plan(cells, repeats=1, only_clients={"slow": frozenset({8})})
    assert [(cell.clients, name) for _, cell, name in plan.steps(["fast", "slow"])] == [
        (1, "fast"),
        (8, "fast"),
        (8, "slow"),
    ]


def test_prompts_with_and_without_a_shared_prefix_are_equally_long() -> None:
    different, same = cells_of(WORKLOADS["prefix"], [])
    target, plan = Target("t", "http://t", "m", wire="native"), Plan([different, same])
    assert load_of(target, different, plan).prompt_words == 1016
    assert load_of(target, same, plan).prompt_words == 16  # the prefix is put before them
    assert load_of(target, same, plan).endpoint == "native"
