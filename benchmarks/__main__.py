"""`python -m benchmarks`, `make bench` and `trireme bench`: reads flags, nothing else."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from benchmarks.client import Endpoint
from benchmarks.make_model import SIZES
from benchmarks.session import Options, bench
from benchmarks.targets import parse_peers
from benchmarks.workloads import WORKLOADS, chosen

WORK = Path(".trireme/bench")
Number = TypeVar("Number", int, float)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    epilog="Examples: `trireme bench --workload decode,short` starts a stack of its own with a "
    "model that it makes. `trireme bench --peer vllm=/opt/vllm/bin/python --peer "
    "llamacpp=/opt/llama/llama-server` measures others beside it. `trireme bench --base-url "
    "http://localhost:8000` measures a server that runs. `trireme bench --rate 1,2,4` sends "
    "requests at these rates, whatever becomes of them."
)
def main(
    context: typer.Context,
    workload: Annotated[
        str, typer.Option(help=f"which loads, a,b: {', '.join(WORKLOADS)}, or all")
    ] = "decode",
    clients: Annotated[str, typer.Option(help="closed loop: numbers of clients")] = "1,8,16,32",
    rate: Annotated[
        str, typer.Option(help="open loop instead: requests a second, such as 1,2,4")
    ] = "",
    duration: Annotated[float, typer.Option(min=0.1, help="seconds of each open loop")] = 30.0,
    prompt_words: Annotated[
        int, typer.Option(min=0, help="words of each prompt; 0 leaves it to the workload")
    ] = 0,
    tokens: Annotated[
        int, typer.Option(min=0, help="tokens of each answer; 0 leaves it to the workload")
    ] = 0,
    requests_per_client: Annotated[int, typer.Option(min=1)] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="3 or more for figures to report")] = 3,
    run_limit: Annotated[
        float,
        typer.Option(min=0, help="cut runs of a closed loop off after so many seconds; 0: never"),
    ] = 0.0,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WHERE",
            help="also vllm=PATH/python, fastchat=PATH/python, llamacpp=PATH or URL; repeatable",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SYSTEM=CLIENTS",
            help="measure a slow system at these numbers of clients alone: fastchat=1,8",
        ),
    ] = None,
    base_url: Annotated[
        str, typer.Option(help="measure this server alone; empty starts a stack of its own")
    ] = "",
    model: Annotated[
        str, typer.Option(help="model name for --base-url; empty takes the first listed")
    ] = "",
    model_path: Annotated[
        str, typer.Option(help="model folder for the own stack; empty makes one of --size")
    ] = "",
    size: Annotated[
        str, typer.Option(help=f"model to make for the own stack: {', '.join(SIZES)}")
    ] = "400m",
    engine: Annotated[
        str, typer.Option(help="engine of the own stack; sim needs no model, and shows the rest")
    ] = "paged",
    worker_args: Annotated[str, typer.Option(help="more flags for the own stack's worker")] = "",
    direct: Annotated[
        bool, typer.Option(help="also past our gateway, straight to the worker")
    ] = True,
    pause: Annotated[
        bool, typer.Option(help="stop the processes of all systems but the one measured")
    ] = True,
    bound: Annotated[
        bool, typer.Option(help="time the model's matrix products alone, as a bound (CPU)")
    ] = True,
    plots: Annotated[bool, typer.Option(help="draw pictures, PNG and SVG")] = True,
    cpu: Annotated[bool, typer.Option("--cpu", help="show the systems' CPU time too")] = False,
    endpoint: Annotated[
        Endpoint, typer.Option(help="route, of OpenAI-compatible servers")
    ] = "chat",
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option(help="of prompts and arrivals (default: a new one, that the report names)"),
    ] = None,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", show_default=False)] = "",
    out: Annotated[
        Path, typer.Option(help="JSON file for all runs; tables and pictures go beside it")
    ] = WORK / "bench.json",
) -> None:
    """Measure tokens a second and latencies of Trireme, and of other servers beside it.

    Real requests over HTTP, streamed. Each load is repeated, in turn with all others, and the
    medians are shown with their spread.
    """
    try:
        peers = parse_peers(peer or [])
        systems = ["server"] if base_url else ["trireme", "trireme direct", *dict(peers)]
        options = Options(
            workloads=chosen(workload, prompt_words=prompt_words, tokens=tokens),
            clients=_numbers(int, clients),
            rates_per_s=_numbers(float, rate) if rate else (),
            open_s=duration,
            requests_per_client=requests_per_client,
            repeats=repeats,
            run_limit_s=run_limit,
            peers=peers,
            only=_only(only or [], systems),
            base_url=base_url.rstrip("/"),
            model=model,
            model_path=model_path,
            size=size,
            engine=engine,
            worker_args=worker_args.split(),
            direct=direct,
            pause=pause,
            bound=bound,
            plots=plots,
            cpu=cpu,
            endpoint=endpoint,
            temperature=temperature,
            seed=random.SystemRandom().randrange(1 << 31) if seed is None else seed,
            api_key=api_key,
            out=out,
            work=WORK,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    command = [*(context.info_name or "").split(), *context.obj]
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # nobody's window: room for the tables
    raise typer.Exit(bench(options, console, command))


def _numbers(kind: Callable[[str], Number], text: str) -> list[Number]:
    """`a,b`, each above zero.

    Raises:
        ValueError: for anything else.
    """
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(number > 0 for number in found):
        raise ValueError(f"{text!r} is no list of numbers above 0, such as 1,8,16")
    return found


def _only(values: Sequence[str], systems: Sequence[str]) -> dict[str, frozenset[int]]:
    """`system=1,8` each.

    Raises:
        ValueError: for another form, or a system that is not measured.
    """
    found = {}
    for value in values:
        name, _, numbers = value.partition("=")
        if name not in systems:
            raise ValueError(f"{value!r}: {name!r} is not measured, but {', '.join(systems)}")
        found[name] = frozenset(_numbers(int, numbers))
    return found


def run(args: Sequence[str], name: str) -> None:
    """Run the command line `args` of the program `name`; ends the process with its exit code."""
    app(list(args), prog_name=name, obj=list(args))


if __name__ == "__main__":
    run(sys.argv[1:], "python -m benchmarks")
