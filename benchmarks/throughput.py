"""Tokens a second and latency of an OpenAI-compatible server, over the number of clients.

Closed loop: each client sends its next request when the last one has ended. All levels run in
every repeat, so that a slow minute of the machine hits all of them alike. Run it with
`python -m benchmarks.throughput --help`.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.client import Endpoint, Load, Sample, stream_once
from benchmarks.make_model import SIZES, make_model
from benchmarks.stack import StackFailed, running_stack
from benchmarks.stats import FIGURES, Run, summarise

WORK = Path(".trireme/bench")
console = Console()


async def closed_loop(
    base_url: str, load: Load, clients: int, requests_per_client: int, seed: str, api_key: str
) -> Run:
    """All clients at once, each with its requests one after the other."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_read=600),
    ) as session:

        async def client(number: int) -> list[Sample]:
            rng = random.Random(f"{seed}/{number}")
            return [
                await stream_once(session, base_url, load, rng) for _ in range(requests_per_client)
            ]

        samples = await asyncio.gather(*(client(number) for number in range(clients)))
    return Run.of(clients, [sample for one in samples for sample in one])


async def first_model(base_url: str, api_key: str) -> str:
    """The name of the first model that the server lists."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with (
        aiohttp.ClientSession(headers=headers, raise_for_status=True) as session,
        session.get(f"{base_url}/v1/models") as answer,
    ):
        return str((await answer.json())["data"][0]["id"])


def measure(
    base_url: str,
    load: Load,
    levels: list[int],
    repeats: int,
    requests_per_client: int,
    api_key: str,
) -> list[Run]:
    """Warm up, then run every level in every repeat; the order turns round each time."""

    def run(clients: int, requests: int, seed: str) -> Run:
        return asyncio.run(closed_loop(base_url, load, clients, requests, seed, api_key))

    runs: list[Run] = []
    with console.status("warming up") as status:
        for clients in levels:
            status.update(f"warming up with {clients} clients")
            run(clients, 1, f"warm-up/{clients}")
        for repeat in range(repeats):
            for clients in levels if repeat % 2 == 0 else reversed(levels):
                status.update(f"repeat {repeat + 1} of {repeats}: {clients} clients")
                runs.append(run(clients, requests_per_client, f"{repeat}/{clients}"))
    return runs


def table(runs: list[Run], title: str) -> Table:
    """Medians over the repeats, with least and greatest below them."""
    shown = Table(
        title=title,
        caption="median over the repeats, least–greatest below it; times in ms;\n"
        "p99 is the greatest where there are fewer than 100 values",
    )
    for heading in ("clients", "tokens/s", "ratio", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99"):
        shown.add_column(heading, justify="right", no_wrap=True)
    summary = summarise(runs)
    base = summary[min(summary)]["tokens_per_s"].median
    for clients, figures in summary.items():
        rate = figures["tokens_per_s"].median
        failed = sum(run.failed for run in runs if run.clients == clients)
        shown.add_row(
            f"{clients}\n[red]{failed} failed[/red]" if failed else str(clients),
            figures["tokens_per_s"].show(),
            f"{rate / base:.1f}x" if base else "–",
            *(figures[name].show() for name in FIGURES[1:]),
        )
    return shown


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load_average_before": os.getloadavg(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def main(
    base_url: Annotated[
        str, typer.Option(help="server to measure; empty starts a stack of its own")
    ] = "",
    model: Annotated[str, typer.Option(help="model name; empty takes the first listed")] = "",
    model_path: Annotated[
        str, typer.Option(help="folder of the model for the own stack; empty makes one of --size")
    ] = "",
    size: Annotated[
        str, typer.Option(help=f"model to make for the own stack: {', '.join(SIZES)}")
    ] = "400m",
    engine: Annotated[
        str, typer.Option(help="engine of the own stack; sim needs no model, and shows the rest")
    ] = "paged",
    worker_args: Annotated[str, typer.Option(help="more flags for the own stack's worker")] = "",
    clients: Annotated[str, typer.Option(help="numbers of clients")] = "1,8,16,32",
    tokens: Annotated[int, typer.Option(min=1, help="tokens of each answer")] = 128,
    prompt_words: Annotated[int, typer.Option(min=1, help="words of each prompt")] = 48,
    requests_per_client: Annotated[int, typer.Option(min=1)] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="3 or more for figures to report")] = 3,
    endpoint: Annotated[Endpoint, typer.Option()] = "chat",
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", show_default=False)] = "",
    out: Annotated[Path, typer.Option(help="JSON file for all runs")] = WORK / "throughput.json",
) -> None:
    """Measure tokens a second and latency over the number of clients."""
    levels = [int(number) for number in clients.split(",")]
    about = machine()
    stack: AbstractContextManager[str]
    if base_url:
        stack = nullcontext(base_url.rstrip("/"))
    else:
        flags = ["--engine", engine, *worker_args.split()]
        if engine != "sim":
            path = model_path or str(make_model(size, WORK / "models", console.print))
            flags += ["--model-path", path]
        stack = running_stack(flags, WORK / "logs")
        console.print("starting a stack on free ports")
    started = time.monotonic()
    try:
        with stack as url:
            ready_s = time.monotonic() - started
            name = model or asyncio.run(first_model(url, api_key))
            load = Load(name, tokens, prompt_words, endpoint, temperature)
            runs = measure(url, load, levels, repeats, requests_per_client, api_key)
    except StackFailed as failure:
        console.print(str(failure), style="red", markup=False)
        raise typer.Exit(1) from failure

    console.print(table(runs, f"{load.model}: {prompt_words} words in, {tokens} tokens out"))
    if any(not run.usage_known for run in runs):
        console.print("[yellow]The server sent no usage: pieces were counted as tokens.[/yellow]")
    out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "command": " ".join(["python -m benchmarks.throughput", *sys.argv[1:]]),
        "machine": about,
        "ready_s": None if base_url else round(ready_s, 1),
        "model": load.model,
        "prompt_words": prompt_words,
        "tokens": tokens,
        "runs": [run.as_json() for run in runs],
    }
    out.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"All runs: {out}")
    if errors := [run.first_error for run in runs if run.first_error]:
        console.print(f"[red]Some requests failed, the first one with: {errors[0]}[/red]")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
