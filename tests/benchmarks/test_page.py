"""docs/benchmarks.md says what the program says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from benchmarks.__main__ import app
from benchmarks.workloads import WORKLOADS


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "benchmarks.md").read_text()


def test_every_flag_on_the_page_exists(page: str) -> None:
    known = {
        flag for param in get_command(app).params for flag in (*param.opts, *param.secondary_opts)
    }
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page))
    assert len(used) > 10
    assert used <= known | {"--help"}


def test_every_workload_is_on_the_page_with_its_numbers(page: str) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, flags=re.MULTILINE))
    assert set(rows) == set(WORKLOADS)
    for name, row in rows.items():
        numbers = set(re.findall(r"\d+", row.replace(",", "")))
        workload = WORKLOADS[name]
        wanted = [workload.prompt_words, workload.prefix_words, workload.long_words]
        wanted += [workload.long_requests, workload.clients]
        assert {str(number) for number in wanted if number} <= numbers, name
