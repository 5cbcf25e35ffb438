"""`python -m benchmarks`, `make bench` and `trireme bench`: reads flags, nothing else."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

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


EXAMPLES = """
Examples:

trireme bench --workload decode,short

trireme bench --peer vllm=venv/bin/python --peer llamacpp=build/bin/llama-server

trireme bench --base-url http://localhost:8000 --clients 8

trireme bench --rate 1,2,4 --duration 60
"""


HOW = "How it is measured and shown"


def _load(text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel="The load", **more)


def _system(text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel="The systems", **more)


def _how(text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=HOW, **more)


@app.command(epilog=EXAMPLES.strip())
def main(
    context: typer.Context,
    workload: Annotated[
        str, _load(f"which, a,b: {', '.join(WORKLOADS)}, or all", metavar="NAMES")
    ] = "decode",
    clients: Annotated[
        str, _load("closed loop: numbers of clients", metavar="NUMBERS")
    ] = "1,8,16,32",
    rate: Annotated[
        str, _load("open loop instead: requests a second, such as 1,2,4", metavar="NUMBERS")
    ] = "",
    duration: Annotated[
        float, _load("seconds of each open loop", min=0.1, metavar="SECONDS")
    ] = 30.0,
    prompt_words: Annotated[
        int, _load("words of each prompt; 0 leaves it to the workload", min=0, metavar="N")
    ] = 0,
    tokens: Annotated[
        int, _load("tokens of each answer; 0 leaves it to the workload", min=0, metavar="N")
    ] = 0,
    requests_per_client: Annotated[
        int, _load("closed loop: one after the other", min=1, metavar="N")
    ] = 2,
    temperature: Annotated[
        float, _load("0 is the likeliest answer", min=0, max=2, metavar="NUMBER")
    ] = 0.0,
    endpoint: Annotated[
        Endpoint, _load(f"route: {', '.join(get_args(Endpoint))}", metavar="ROUTE")
    ] = "chat",
    seed: Annotated[
        int | None,
        _load("of prompts and arrivals (default: a new one, that the report names)", metavar="N"),
    ] = None,
    peer: Annotated[
        list[str] | None,
        _system(
            "also vllm=PATH/python, fastchat=PATH/python, llamacpp=PATH or URL; repeatable",
            metavar="NAME=WHERE",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        _system(
            "measure a slow system at these numbers of clients alone: fastchat=1,8",
            metavar="SYSTEM=N,N",
        ),
    ] = None,
    base_url: Annotated[
        str, _system("measure this server alone; empty starts a stack of our own", metavar="URL")
    ] = "",
    model: Annotated[
        str, _system("model of --base-url; empty takes the first listed", metavar="NAME")
    ] = "",
    api_key: Annotated[
        str,
        _system("for --base-url", envvar="OPENAI_API_KEY", show_default=False, metavar="KEY"),
    ] = "",
    model_path: Annotated[
        str, _system("model of our stack; empty makes one of --size", metavar="FOLDER")
    ] = "",
    size: Annotated[
        str, _system(f"model to make for our stack: {', '.join(SIZES)}", metavar="NAME")
    ] = "400m",
    engine: Annotated[
        str, _system("of our stack; sim needs no model, and shows the rest", metavar="NAME")
    ] = "paged",
    prompt_lookup: Annotated[
        bool,
        _system("let our worker draft; off, as random weights repeat themselves more than people"),
    ] = False,
    worker_args: Annotated[str, _system("more flags for our worker", metavar="FLAGS")] = "",
    direct: Annotated[bool, _system("also past our gateway, straight to the worker")] = True,
    repeats: Annotated[int, _how("3 or more for figures to report", min=1, metavar="N")] = 3,
    run_limit: Annotated[
        float,
        _how(
            "cut runs of a closed loop off after so many seconds; 0: never",
            min=0,
            metavar="SECONDS",
        ),
    ] = 0.0,
    pause: Annotated[bool, _how("stop the processes of all systems but the one measured")] = True,
    bound: Annotated[bool, _how("time the model's matrix products alone, as a bound (CPU)")] = True,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="show the systems' CPU time too", rich_help_panel=HOW)
    ] = False,
    plots: Annotated[bool, _how("draw pictures, PNG and SVG")] = True,
    out: Annotated[
        Path,
        _how("JSON file for all runs; tables and pictures go beside it", metavar="FILE"),
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
            prompt_lookup=prompt_lookup,
            worker_args=worker_args.split(),
            direct=direct,
            pause=pause,
            bound=bound,
            plots=plots,
            cpu=cpu,
            endpoint=endpoint,
            temperature=temperature,
            seed=random.SystemRandom().randrange(1 << 31) if seed is None else seed,
            api_key=api_key if base_url else "",  # a key for elsewhere is not for our own stack
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
