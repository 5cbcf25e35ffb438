"""LiteLLM's proxy in front of a server that speaks OpenAI's API."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.process import chats, interpreter, servers
from benchmarks.systems import Target

ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks a web site for prices, thrice
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    # it listens on loopback only, and our own gateway is measured without keys too
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}


@contextlib.contextmanager
def litellm(value: str, logs: Path, backend_url: str, model: str) -> Iterator[Target]:
    """The proxy with one worker process, without a data base or keys.

    Raises:
        PeerFailed: it does not start, or the backend does not answer through it.
    """
    python = interpreter(value, "litellm")
    with servers(logs) as running:
        config = logs.absolute() / "litellm.json"  # JSON is YAML
        config.write_text(json.dumps(configuration(backend_url, model), indent=1))
        server = running.start(
            "litellm", lambda port: command(python, config, port), extra=ENVIRONMENT
        )
        running.wait_until(lambda: chats(server.url, model), "answering", timeout_s=300)
        yield Target("litellm", server.url, model, running.pids)


def configuration(backend_url: str, model: str) -> dict[str, object]:
    """What its configuration file says: one model, and as little else as can be."""
    upstream = {"model": f"openai/{model}", "api_base": f"{backend_url}/v1", "api_key": "none"}
    return {
        "model_list": [{"model_name": model, "litellm_params": upstream}],
        "litellm_settings": {"telemetry": False, "set_verbose": False, "num_retries": 0},
        "general_settings": {"disable_spend_logs": True, "disable_error_logs": True},
    }


def command(python: Path, config: Path, port: int) -> list[str]:
    """One process, as ours, so that both are counted per core."""
    return [
        *(str(python.with_name("litellm")), "--config", str(config)),
        *("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
    ]
