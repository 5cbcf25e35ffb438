"""The whole program, with the simulated engine and with servers that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.session import Options, objection


def bench(root: Path, *flags: str, code: int = 0) -> str:
    """What `trireme bench` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "trireme.cli", "bench", *flags],
        cwd=root,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_whole_run_counts_every_token(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs.json"
    flags = ["--engine=sim", "--clients=1,4", "--tokens=8", "--repeats=2", f"--out={out}"]
    text = bench(root, *flags, "--workload=decode,prefix,long")
    report = json.loads(out.read_text())
    decode, prefix, long = report["workloads"]
    assert [
        (row["label"], row["system"], [(run["requests"], run["tokens"]) for run in row["runs"]])
        for row in decode["rows"]
    ] == [
        ("1", "trireme", [(2, 16)] * 2),
        ("1", "trireme direct", [(2, 16)] * 2),
        ("4", "trireme", [(8, 64)] * 2),
        ("4", "trireme direct", [(8, 64)] * 2),
    ]
    runs = [
        run for workload in report["workloads"] for row in workload["rows"] for run in row["runs"]
    ]
    assert not any(run["failed"] for run in runs)
    assert all(run["usage_known"] and run["prompt_tokens"] for run in runs)
    assert all(run["cpu_s"] is not None for run in runs)
    assert [row["label"] for row in prefix["rows"]] == ["different"] * 2 + ["same"] * 2
    through = [row["runs"][0]["prompt_tokens_each"] for row in prefix["rows"]]
    assert max(through) - min(through) < 0.02 * max(through)
    details = long["rows"][0]["runs"][0]["details"]
    assert details["long_ttft_max_ms"] > 0
    assert report["systems"][1] == {"system": "trireme direct", "model": "sim", "wire": "native"}
    assert "trireme bench --engine=sim" in report["command"]
    assert "trireme direct" in text
    assert (tmp_path / "runs.md").read_text().startswith("decode: ")
    for name in ("throughput", "latency"):
        assert (tmp_path / f"runs-{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "trireme direct" in (tmp_path / f"runs-{name}.svg").read_text()


@pytest.mark.slow
def test_an_open_loop_sends_what_is_due(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "open.json"
    flags = ["--engine=sim", "--rate=40", "--duration=1", "--tokens=4", "--seed=5"]
    bench(root, *flags, "--repeats=1", "--no-plots", f"--out={out}")
    (workload,) = json.loads(out.read_text())["workloads"]
    gateway, direct = workload["rows"]
    (run,) = gateway["runs"]
    assert (gateway["loop"], gateway["label"], gateway["level"]) == ("open", "40/s", 40)
    assert run["requests"] == run["details"]["offered_per_s"] == direct["runs"][0]["requests"]
    assert run["tokens"] == 4 * run["requests"]
    assert run["failed"] == 0
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_measured(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.json"
    flags = ["--engine=sim", "--worker-args=--sim-itl-ms=20", "--repeats=9", "--no-plots"]
    with subprocess.Popen(
        [sys.executable, "-m", "trireme.cli", "bench", *flags, "--clients=1", f"--out={out}"],
        cwd=root,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "repeat 1 of 9" in line and "tokens/s" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 130, rest
    report = json.loads(out.read_text())
    assert report["interrupted"] is True
    assert 1 <= len(report["workloads"][0]["rows"][0]["runs"]) < 9


class Failing(BaseHTTPRequestHandler):
    """Answers the first requests, so that the warm-up is well, and then no longer."""

    def do_GET(self) -> None:
        self.answer(404 if "readyz" in self.path else 200, {"data": [{"id": "frail"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.count += 1  # type: ignore[attr-defined]
        if self.server.count > 2:  # type: ignore[attr-defined]
            self.answer(503, {"error": {"message": "[worn out]"}})
            return
        frame = json.dumps({"choices": [{"delta": {"content": "a"}, "finish_reason": "length"}]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"data: {frame}\n\ndata: [DONE]\n\n".encode())

    def answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def failing_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        server.count = 0  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_failed_requests_are_told_and_make_the_exit_code_1(
    root: Path, tmp_path: Path, failing_url: str
) -> None:
    out = tmp_path / "failed.json"
    flags = [
        "--clients=1",
        "--repeats=1",
        "--tokens=2",
        f"--out={out}",
        f"--base-url={failing_url}/",
    ]
    text = bench(root, *flags, code=1)
    assert "2 requests failed, the first with: HTTP 503" in text
    assert "[worn out]" in text
    (run,) = json.loads(out.read_text())["workloads"][0]["rows"][0]["runs"]
    assert (run["requests"], run["failed"], run["tokens"]) == (2, 2, 0)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--workload=fast"], "no workload 'fast'"),
        (["--clients=1,x"], "no list of numbers"),
        (["--rate=0"], "no list of numbers"),
        (["--repeats=0"], "repeats"),
        (["--only=vllm=8"], "'vllm' is not measured"),
        (["--engine=sim", "--run-limit=5"], "--run-limit needs a --model-path"),
        (["--model=m"], "--model names a model of --base-url"),
        (["--engine=sim", "--peer=vllm=x"], "--peer needs a model"),
        (["--base-url=http://localhost:1", "--peer=vllm=x"], "does not go with --base-url"),
    ],
)
def test_a_bad_flag_is_refused(root: Path, flags: list[str], reason: str) -> None:
    assert reason in bench(root, *flags, code=2)


def test_help_shows_the_flags_and_examples(root: Path) -> None:
    text = bench(root, "--help")
    assert "trireme bench [OPTIONS]" in text
    assert "--workload" in text
    assert "Examples" in text


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(workloads=[], clients=[1], out=Path("x"), work=Path("w"), engine="sim")
    assert objection(options) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'trireme[bench]'" in (objection(options) or "")
    plain = replace(options, plots=False)
    assert objection(plain) is None
    assert "pip install 'trireme[worker]'" in (objection(replace(plain, engine="paged")) or "")
