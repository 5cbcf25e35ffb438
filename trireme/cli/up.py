"""`trireme up`: the three tiers on this machine, as children of one command."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
from rich.console import Console
from rich.text import Text

from trireme.cli.display import Display
from trireme.cli.supervise import Stack
from trireme.cli.up_settings import PortTaken, UpSettings, open_to_others, plan, with_ports
from trireme.service.settings import EXIT_PORT


def up(settings: UpSettings, console: Console) -> int:
    """Start the tiers, serve until a signal, stop them; returns the exit code."""
    try:
        settings = with_ports(settings)
    except PortTaken as error:
        Display(console).line("trireme up", str(error), "bad")
        return EXIT_PORT
    log_dir = make_log_dir(settings)
    began = time.monotonic()

    async def announce() -> None:
        names = await served_models(settings, os.environ)
        took_s = time.monotonic() - began
        console.print(summary(settings, names, took_s, log_dir), soft_wrap=True, highlight=False)

    with Display(console) as display:
        stack = Stack(plan(settings), log_dir, display, verbose=settings.verbose, announce=announce)
        return asyncio.run(stack.run())


def make_log_dir(settings: UpSettings) -> Path:
    """The folder for logs: as told, else `.trireme/<port>` here, else a temporary one."""
    if settings.log_dir is not None:
        settings.log_dir.mkdir(parents=True, exist_ok=True)
        return settings.log_dir
    here = Path(".trireme") / str(settings.port)
    try:
        here.mkdir(parents=True, exist_ok=True)
        if os.access(here, os.W_OK):
            return here
    except OSError:
        pass  # a folder that cannot be written to, such as a read-only image
    return Path(tempfile.mkdtemp(prefix="trireme-"))


async def served_models(settings: UpSettings, environment: Mapping[str, str]) -> list[str]:
    """Names of the models that are ready, as the controller knows them; none if it is silent."""
    token = environment.get("TRIREME_CONTROLLER_CLUSTER_TOKEN") or environment.get(
        "TRIREME_CLUSTER_TOKEN", ""
    )
    headers = {b"authorization": b"Bearer " + token.encode()} if token else {}
    try:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            answer = await client.post(f"{settings.controller_url}/list_models", headers=headers)
            return [str(name) for name in answer.raise_for_status().json()["models"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return []


def summary(settings: UpSettings, models: list[str], took_s: float, log_dir: Path) -> Text:
    """What a person does next: the base URL, a curl line, the commands."""
    url = settings.gateway_url
    key = " -H 'Authorization: Bearer YOUR_KEY'" if settings.api_keys else ""
    insecure = " -k" if settings.ssl else ""
    question = {
        "model": models[0] if models else "MODEL",
        "messages": [{"role": "user", "content": "Hello! What is your name?"}],
    }
    chat = "trireme chat" if settings.port == 8000 else f"trireme chat --base-url {url}/v1"
    status = "trireme status"
    if settings.controller_port != 21001:
        status += f" --controller-address {settings.controller_url}"
    rows = [
        ("Models", ", ".join(models) or "none yet"),
        ("Base URL", f"{url}/v1"),
        (
            "Try",
            f"curl{insecure} {url}/v1/chat/completions -H 'Content-Type: application/json'{key} "
            f"-d {_shell_quoted(json.dumps(question))}",
        ),
        ("Chat", chat),
        ("Fleet", status),
        ("Logs", str(log_dir)),
        ("Stop", "Ctrl-C"),
    ]
    text = Text.assemble(("\nTrireme serves", "bold green"), f" (ready in {took_s:.1f} s)\n")
    if open_to_others(settings):
        text.append(
            "It listens for other machines and asks for no key: see --api-keys.\n", "yellow"
        )
    for label, value in rows:
        text.append(f"  {label:<9} ", "bold")
        text.append(f"{value}\n")
    return text


def _shell_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
