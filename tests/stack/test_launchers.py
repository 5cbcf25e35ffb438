"""Exit codes and one-line reasons of the launchers, on real folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack.processes import ROOT, free_port
from worker.demo import demo_model_path


def launch(tier: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a launcher that is to fail."""
    return subprocess.run(
        [sys.executable, "-m", tier, "--port", str(free_port()), *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("tier", ["controller", "worker", "gateway"])
@pytest.mark.parametrize(
    "args", [["--port", "nonsense"], ["--port", "70000"], ["--no-such-flag"]], ids=" ".join
)
def test_bad_arguments_exit_2_with_one_line(tier: str, args: list[str]) -> None:
    result = launch(tier, *args)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("tier", ["controller", "worker"])
def test_an_open_control_port_is_refused(tier: str) -> None:
    result = launch(tier, "--host", "0.0.0.0")
    assert result.returncode == 2
    assert "--cluster-token" in last_line(result)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may damage."""
    return Path(shutil.copytree(demo_model_path(), tmp_path / "model"))


def test_a_missing_model_folder_exits_3() -> None:
    result = launch("worker", "--no-register", "--model-path", "/nowhere/at/all")
    assert result.returncode == 3
    assert "/nowhere/at/all" in last_line(result)


def test_a_truncated_model_exits_3(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    result = launch("worker", "--no-register", "--model-path", str(model))
    assert result.returncode == 3
    assert "broken safetensors file" in last_line(result)


def test_the_reason_is_the_only_line_also_without_a_chat_template(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    result = launch("worker", "--no-register", "--model-path", str(model))
    assert result.returncode == 3
    (line,) = [line for line in result.stderr.splitlines() if " listening on " not in line]
    assert "broken safetensors file" in line


def test_a_folder_of_pickled_weights_exits_3(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    result = launch("worker", "--no-register", "--model-path", str(model))
    assert result.returncode == 3
    assert "safetensors" in last_line(result)


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_code_of_a_checkpoint_does_not_run_and_the_flag_is_named(
    model: Path, part: str, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\nclass Own:\n    pass\n"
    (model / "own.py").write_text(code)
    name = "config.json" if part == "model" else "tokenizer_config.json"
    config = json.loads((model / name).read_text())
    if part == "model":
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    else:
        config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
        (model / "tokenizer.json").unlink()
    (model / name).write_text(json.dumps(config))
    result = launch("worker", "--no-register", "--model-path", str(model))
    assert result.returncode == 3, result.stderr
    assert "--trust-remote-code" in last_line(result)
    assert not ran.exists()
