"""`trireme up` over real processes: it serves, it stops, it leaves nobody behind."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.cli.conftest import Terminal

Trireme = Callable[..., subprocess.CompletedProcess[str]]
PORTS = ("--port", "0", "--controller-port", "0", "--worker-port", "0")
SIM = ("--engine", "sim", "--model-names", "demo", *PORTS)


class Up:
    """A running `trireme up`."""

    def __init__(self, environment: dict[str, str], folder: Path, *flags: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trireme.cli", "up", *flags],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def expect(self, pattern: str, seconds: float = 60, count: int = 1) -> str:
        deadline = time.monotonic() + seconds
        while len(found := re.findall(pattern, self.text)) < count:
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)
        return str(found[-1])

    def family(self) -> list[psutil.Process]:
        """All descendants."""
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def tier(self, name: str) -> psutil.Process:
        """The first process of a tier."""
        return next(
            each
            for each in psutil.Process(self.process.pid).children()
            if f"-m {name} " in " ".join(each.cmdline())
        )

    def stop(self, sign: signal.Signals, seconds: float = 40) -> int:
        self.process.send_signal(sign)
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code


@pytest.fixture
def start(command_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def begin(*flags: str) -> Up:
        started.append(Up(command_environment, tmp_path, *flags))
        return started[-1]

    yield begin
    for each in started:
        left = each.family() if each.process.poll() is None else []
        for process in (each.process, *left):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        each.process.wait(10)
        assert each.process.stdout is not None
        each.process.stdout.close()


def gone(processes: list[psutil.Process], seconds: float = 10) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return all(each.status() == psutil.STATUS_ZOMBIE for each in alive)


def ask(base_url: str) -> str:
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    answer = httpx.post(f"{base_url}/chat/completions", json=body, timeout=30, trust_env=False)
    return str(answer.raise_for_status().json()["choices"][0]["message"]["content"])


def test_it_serves_shows_itself_survives_a_crash_and_stops(
    start: Callable[..., Up], trireme: Trireme, tmp_path: Path
) -> None:
    up = start(*SIM, "--workers", "2")
    base_url = up.expect(r"Base URL +(\S+)")
    assert up.expect(r"Models +(.+)") == "demo"
    assert ask(base_url)
    up.expect(r"curl http://127.0.0.1:\d+/v1/chat/completions")
    controller = up.expect(r"trireme status --controller-address (\S+)")

    status = trireme("status", "--controller-address", controller)
    assert status.stdout.count("demo") == 2, status.stdout
    assert status.stdout.count("ready") == 2
    chat = trireme("chat", "--base-url", base_url, "--max-tokens", "5", stdin="hello\n")
    assert (chat.returncode, chat.stderr) == (0, "")
    assert chat.stdout.strip()

    up.tier("worker").kill()
    up.expect(r"✗ worker-\d +was killed by SIGKILL; starting it again")
    up.expect(r"✓ worker-\d +ready", count=3)
    assert ask(base_url)

    family = up.family()
    assert len(family) >= 4
    assert up.stop(signal.SIGINT) == 0, up.text
    assert gone(family)
    stops = re.findall(r"• (\w+) +stopping", up.text)
    assert stops == ["gateway", "worker", "controller"]
    assert up.lines[-1].endswith("all stopped")
    (folder,) = (tmp_path / ".trireme").iterdir()
    logs = sorted(each.name for each in folder.iterdir())
    assert logs == ["controller.log", "gateway.log", "worker-1.log", "worker-2.log"]


def test_a_drained_worker_is_not_started_again_and_the_last_one_ends_all(
    start: Callable[..., Up], trireme: Trireme
) -> None:
    up = start(*SIM, "--workers", "2")
    base_url = up.expect(r"Base URL +(\S+)")
    controller = up.expect(r"trireme status --controller-address (\S+)")
    workers = re.findall(r"worker-\d +ready at (\S+)", up.text)
    drained = trireme("drain", workers[0], "--controller-address", controller)
    assert (drained.returncode, drained.stderr) == (0, "")
    up.expect(r"worker-\d +was stopped from outside; to have it back, stop all")
    assert ask(base_url)
    drained = trireme("drain", workers[1], "--controller-address", controller)
    assert drained.returncode == 0, drained.stderr
    assert up.process.wait(40) == 0
    assert "starting it again" not in up.text


def test_nobody_outlives_a_killed_parent(start: Callable[..., Up]) -> None:
    up = start(*SIM, "--verbose")
    up.expect("Trireme serves")
    assert "worker | " in up.text
    family = up.family()
    assert len(family) >= 3
    up.stop(signal.SIGKILL)
    assert gone(family)


def test_on_a_terminal_ctrl_c_drains_and_a_second_one_kills(
    terminal_of: Callable[..., Terminal],
) -> None:
    terminal = terminal_of("up", *SIM, "--", "--sim-itl-ms", "1000")
    terminal.expect("Trireme serves", 60)
    terminal.expect("Base URL")
    terminal.expect("Stop")
    base_url = re.findall(r"http://[0-9.:]+/v1", terminal.everything)[0]
    family = psutil.Process(terminal.process.pid).children(recursive=True)
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with httpx.stream(
        "POST", f"{base_url}/chat/completions", json=body, timeout=30, trust_env=False
    ) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data:")
        terminal.type("\x03")
        terminal.expect("stopping")
        assert next(line for line in lines if line).startswith("data:")
        terminal.type("\x03")
        terminal.expect("had to be killed")
        assert terminal.exit_code() == 0
    assert gone(family)


def test_a_signal_while_starting_stops_all(start: Callable[..., Up]) -> None:
    up = start(*SIM)
    up.expect("gateway +starting")
    family = up.family()
    assert up.stop(signal.SIGTERM) == 0
    assert gone(family)


def test_a_crash_before_it_served_stops_all_with_its_code(start: Callable[..., Up]) -> None:
    up = start(*SIM, "--", "--sim-tokens", "none")
    assert up.process.wait(60) == 2
    up.expect("worker +ended with exit code 2")
    up.expect(r"worker \| .*--sim-tokens")
    up.expect("its log: .*worker.log")
    assert up.expect("all stopped")


def test_a_model_that_cannot_be_loaded_is_exit_code_3_with_the_reason(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    up = start("--model-path", str(tmp_path / "nothing-here"), *PORTS)
    assert up.process.wait(90) == 3
    up.expect("✗ worker +cannot load the model")
    up.expect(r"worker \| .*nothing-here")


def test_a_taken_port_is_exit_code_4_and_starts_nothing(trireme: Trireme) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = trireme("up", "--port", port)
    assert ended.returncode == 4
    assert f"port {port} on 127.0.0.1" in ended.stdout
    assert "--port" in ended.stdout
    assert "starting" not in ended.stdout


def test_a_folder_named_like_a_tier_is_not_taken_for_it(
    command_environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "controller").mkdir()
    (tmp_path / "controller" / "__main__.py").write_text("raise SystemExit(77)")
    shown = subprocess.run(
        [sys.executable, "-P", "-m", "trireme.cli", "controller", "--help"],
        env=command_environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert shown.returncode == 0, shown.stderr
    assert "--heartbeat-ttl" in shown.stdout


def test_launchers_pass_flags_and_exit_codes(trireme: Trireme) -> None:
    ended = trireme("controller", "--heartbeat-ttl", "no")
    assert ended.returncode == 2
    assert ended.stderr.startswith("python -m controller: --heartbeat-ttl")


@pytest.mark.parametrize("command", ["up", "status", "drain", "chat"])
def test_help_never_imports_torch(command: str, command_environment: dict[str, str]) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['trireme', '{command}', '--help']\n"
        "from trireme.cli.main import main\n"
        "try: main()\n"
        "finally: print('heavy:', sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env=command_environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert shown.returncode == 0, shown.stderr
    assert "heavy: []" in shown.stdout


def test_bad_flags_exit_2(trireme: Trireme) -> None:
    assert trireme("up", "--workers", "0").returncode == 2
    assert trireme("up", "--no-such-flag").returncode == 2
    assert trireme("no-such-command").returncode == 2
