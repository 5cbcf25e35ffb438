"""The GPU benchmark: its bound is right, and its code runs, with a tiny model on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import PEER, SHAPES, Ceilings, Load, bound_s, main


def test_a_step_is_bound_by_bytes_for_few_sequences_and_by_products_for_many() -> None:
    sizes = SHAPES["1b"]
    weights = sizes["layers"] * sizes["hidden"] * (
        2 * sizes["hidden"] + 2 * 8 * 64 + 3 * sizes["inner"]
    ) + (sizes["vocab"] * sizes["hidden"])
    per_token = 2 * sizes["layers"] * 8 * 64 * 2
    bytes_only = Ceilings(1e12, 1e30)
    assert bound_s("1b", Load(1, 100, 200), 2, bytes_only) == pytest.approx(
        (2 * weights + 200 * per_token) / 1e12
    )
    products_only = Ceilings(1e30, 1e12)
    attention = 4 * sizes["layers"] * sizes["hidden"] * 200 * 64
    assert bound_s("1b", Load(64, 100, 200), 2, products_only) == pytest.approx(
        (2 * weights * 64 + attention) / 1e12
    )


@pytest.mark.slow
def test_the_dry_run_measures_the_engine_and_the_peer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    systems = ["graphs, overlapped", PEER]
    asked = [word for system in systems for word in ("--systems", system)]
    report = main(["--dry-run-cpu", "--out", str(out), *asked])
    written = json.loads(out.read_text())
    assert [row["system"] for row in written["rows"]] == [
        system for system in systems for _load in range(2)
    ]
    for row in report.rows:
        assert row.tokens_per_s, row.note
        if row.system != PEER:
            assert row.share
            assert row.share > 0
    assert "| tiny | transformers | 3 |" in capsys.readouterr().out
