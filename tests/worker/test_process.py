"""The worker as a real process: exit codes, drain, and what it must not import."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from protocol.generation import Done, decode_event


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", *args], capture_output=True, text=True, timeout=60
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@asynccontextmanager
async def process(*args: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A worker process that is ready, and its URL."""
    port = free_port()
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", "--engine", "sim", "--no-register", "--port", str(port),
        *args, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as http, asyncio.timeout(30):
            while True:
                try:
                    async with http.get(url + "/readyz") as response:
                        if response.status == 200:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)
        yield worker, url
    finally:
        if worker.returncode is None:
            worker.kill()
        await worker.wait()


def test_bad_arguments_exit_2() -> None:
    done = run("--engine", "nonsense")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_missing_model_folder_exits_3_at_once_without_torch(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run("--model-path", str(tmp_path / "none"), "--port", str(free_port()))
    took_s = time.monotonic() - began
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "no model folder" in done.stderr
    assert took_s < 5  # about half a second on an idle machine; importing torch takes longer


def test_a_taken_port_exits_4() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--engine", "sim", "--no-register", "--port", str(port))
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert str(port) in done.stderr


def test_the_simulated_engine_needs_nothing_of_the_worker_extra() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'tokenizers', 'numpy', 'jinja2', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "import worker.__main__, worker.app\n"
        "from worker.config import Settings\n"
        "settings = Settings(engine='sim')\n"
        "kind = settings.engine_kind\n"
        "kind.load_text(settings)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_sigterm_lets_a_running_request_finish_and_exits_0() -> None:
    args = ("--sim-tokens", "30", "--sim-itl-ms", "20")
    async with process(*args) as (worker, url), aiohttp.ClientSession() as http:
        body = {"request_id": "r", "model": "sim", "prompt": "hello"}
        async with http.post(url + "/native/generate", json=body) as response:
            await response.content.readline()
            worker.send_signal(signal.SIGTERM)
            events = [decode_event(line) async for line in response.content]
        ended = time.monotonic()
        assert events[-1] == Done(prompt_tokens=5, completion_tokens=30)
        assert await asyncio.wait_for(worker.wait(), 5) == 0
        assert time.monotonic() - ended < 1.0


async def test_an_idle_worker_exits_0_within_a_second() -> None:
    async with process() as (worker, _):
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 5) == 0
        assert time.monotonic() - began < 1.0
