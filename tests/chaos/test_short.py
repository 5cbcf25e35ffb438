"""The most telling faults, with few clients; `make chaos` plays all of them with many.

The promised times are for a machine that has nothing else to do, so they are not compared here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.__main__ import chosen
from tests.chaos.runner import play
from tests.chaos.scene import SHORT, Result

BRIEF = replace(SHORT, streams=10, plain=4, sim_tokens=60, warm_s=0.8, kills=2, pool=3, slack=100.0)


async def played(names: str, folder: Path) -> list[Result]:
    return [result async for result in play(chosen(names), BRIEF, folder, lambda _text: None)]


def assert_nothing_lost(results: list[Result]) -> None:
    for result in results:
        assert result.verdict == "kept", (result.name, result.broken, result.tally.faults)
        assert result.tally.requests > 0, result.name


@pytest.mark.timeout(300)
async def test_workers_and_gateways_die_and_no_token_is_lost(tmp_path: Path) -> None:
    names = "worker-kill-stream,worker-other-model,gateway-kill"
    results = await played(names, tmp_path)
    assert [result.name for result in results] == names.split(",")
    assert_nothing_lost(results)


async def test_aborts_and_errors_leave_nothing_behind(tmp_path: Path) -> None:
    assert_nothing_lost(await played("leak-sim", tmp_path))


@pytest.mark.timeout(300)
async def test_workers_of_a_real_model_die_and_the_text_stays(tmp_path: Path) -> None:
    assert_nothing_lost(await played("real-kills", tmp_path))
