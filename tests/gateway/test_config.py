"""Flags and environment of the gateway, and what its process does with bad ones and signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.config import GatewaySettings
from trireme.service.auth import digest
from trireme.service.settings import load_settings


def load(*argv: str) -> GatewaySettings:
    return load_settings(GatewaySettings, argv)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr of a start that exits 2."""
    with pytest.raises(SystemExit) as caught:
        load(*argv)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_defaults() -> None:
    settings = load()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.controller_address == ("http://localhost:21001",)
    assert (
        settings.allowed_origins == settings.allowed_methods == settings.allowed_headers == ("*",)
    )
    assert settings.routing == "prefix_aware"
    assert settings.accepted_keys() == ()


def test_lists_are_comma_separated_or_json() -> None:
    settings = load(
        "--controller-address", "http://a:1/,http://b:2", "--api-keys", "k1,k2",
        "--allowed-origins", '["https://a.example"]', "--allow-credentials",
    )  # fmt: skip
    assert settings.controller_address == ("http://a:1", "http://b:2")
    assert [key.digest for key in settings.accepted_keys()] == [digest("k1"), digest("k2")]
    assert settings.allowed_origins == ("https://a.example",)


def test_every_flag_has_an_environment_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIREME_GATEWAY_ROUTING", "random")
    monkeypatch.setenv("TRIREME_GATEWAY_API_KEYS", "k1,k2")
    assert load().routing == "random"
    assert load("--routing", "least_loaded").routing == "least_loaded"
    assert load().api_keys == ("k1", "k2")


def test_keys_never_show_in_a_settings_object() -> None:
    assert "k1" not in repr(load("--api-keys", "k1", "--cluster-token", "k1"))


def test_a_keys_file_has_one_key_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nk1\n\n  k2  \n# theirs\nk3\n")
    settings = load("--api-keys-file", str(file), "--api-keys", "k0")
    assert [key.digest for key in settings.accepted_keys()] == list(
        map(digest, ("k0", "k1", "k2", "k3"))
    )


@pytest.mark.parametrize(
    "content", [None, b"", b"# nothing\n", b"two words\n", b"\xff\xfe\n"], ids=str
)
def test_a_bad_keys_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    assert "--api-keys-file" in refused(capsys, "--api-keys-file", str(file))


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (("--allow-credentials",), "--allow-credentials"),
        (("--routing", "best"), "prefix_aware"),
        (("--port", "99999"), "--port"),
        (("--controller-address", "ftp://a"), "--controller-address"),
        (("--controller-address", "nonsense"), "--controller-address"),
        (("--request-timeout-s", "0"), "--request-timeout-s"),
        (("--nope", "1"), "--nope"),
        (("--ssl",), "SSL_KEYFILE"),
    ],
)
def test_bad_flags_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], part: str
) -> None:
    assert part in refused(capsys, *argv)


# ---- the process --------------------------------------------------------------------------------


@pytest.fixture
def port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        number: int = taken.getsockname()[1]
        return number


@pytest.fixture
def process(port: int) -> Iterator[subprocess.Popen[str]]:
    """A gateway without a fleet."""
    command = [sys.executable, "-m", "gateway", "--port", str(port)]
    command += ["--controller-address", "http://127.0.0.1:9"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def wait_alive(port: int) -> None:
    for _ in range(300):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the gateway did not start")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(
    process: subprocess.Popen[str], port: int, sent: signal.Signals
) -> None:
    wait_alive(port)
    assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 503
    os.kill(process.pid, sent)
    assert process.wait(5) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_ledger_that_cannot_be_written_is_exit_2(tmp_path: Path, processes: str) -> None:
    (tmp_path / "file").touch()
    asked = subprocess.run(
        [sys.executable, "-m", "gateway", "--port", "0", "--processes", processes,
         "--usage-db", str(tmp_path / "file" / "usage.db")],
        stderr=subprocess.PIPE,
        text=True,
        timeout=20,
        check=False,
    )  # fmt: skip
    assert asked.returncode == 2
    assert [line.partition(" /")[0] for line in asked.stderr.splitlines()] == [
        "python -m gateway: --usage-db"
    ]


def test_without_the_default_ledger_it_serves_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    command = [sys.executable, "-m", "gateway", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as started:
        try:
            wait_alive(port)
        finally:
            started.terminate()
        assert started.stderr is not None
        assert "no usage ledger is kept" in started.stderr.read()


def test_a_taken_port_is_exit_4(process: subprocess.Popen[str], port: int) -> None:
    wait_alive(port)
    second = subprocess.run(
        [sys.executable, "-m", "gateway", "--port", str(port)],
        stderr=subprocess.PIPE,
        text=True,
        timeout=20,
        check=False,
    )
    assert second.returncode == 4
    assert len(second.stderr.splitlines()) == 1
