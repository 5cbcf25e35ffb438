"""What a gateway costs: added latency, tokens and requests a second, CPU, memory.

Only the gateway is measured: the worker behind it runs the simulated engine. The same requests
go straight to the worker's native route and through the gateway, in turn. The client is a process
of its own and its CPU is told apart. Run it with `python -m benchmarks.gateway --help`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.gateway_load import Load, Spec
from benchmarks.gateway_systems import Stack, Way, body_text, our_stack, peer_ways
from benchmarks.machine import machine

WORK: Final = Path(".trireme/bench")
console = Console()


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of load.

    Attributes:
        sim: flags of the simulated engine.
        tokens: of each answer. stream: whether it is streamed to the client.
        clients, think_s: see `gateway_load.Spec`.
    """

    name: str
    title: str
    sim: tuple[str, ...]
    clients: int
    tokens: int
    stream: bool
    think_s: float = 0.0


WORKS: Final[Mapping[str, Work]] = {
    work.name: work
    for work in (
        Work(
            "latency",
            "a: 64 clients, 32 tokens streamed, first after 40 ms, then one each 10 ms",
            ("--sim-ttft-ms=40", "--sim-itl-ms=10", "--sim-max-running=1024"),
            clients=64,
            tokens=32,
            stream=True,
            think_s=0.2,
        ),
        Work(
            "whole-latency",
            "a: the same, not streamed",
            ("--sim-ttft-ms=40", "--sim-itl-ms=10", "--sim-max-running=1024"),
            clients=64,
            tokens=32,
            stream=False,
            think_s=0.2,
        ),
        Work(
            "streams",
            "b: 256 streams of 128 tokens, as fast as they come",
            ("--sim-max-running=1024",),
            clients=256,
            tokens=128,
            stream=True,
        ),
        Work(
            "requests",
            "c: 32 clients, answers of 16 tokens, not streamed",
            ("--sim-max-running=1024",),
            clients=32,
            tokens=16,
            stream=False,
        ),
        Work(
            "pace",
            "d: 500 streams of 50 tokens a second",
            ("--sim-itl-ms=20", "--sim-max-running=1024"),
            clients=500,
            tokens=100,
            stream=True,
            think_s=0.05,
        ),
    )
}


def measure(way: Way, work: Work, seconds: float, warm_s: float = 1.0) -> Load:
    """One load on one way, by a client process of its own."""
    spec = Spec(
        url=way.url,
        body=body_text(way, work.tokens, work.stream),
        mark=way.mark,
        end=way.end if work.stream else way.whole_end,
        pieces=_pieces(way, work),
        clients=work.clients,
        seconds=seconds,
        warm_s=warm_s,
        think_s=work.think_s,
        headers=dict(way.headers),
        pids={"gateway": list(way.gateway), "backend": list(way.backend)},
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gateway_load", json.dumps(asdict(spec))],
        stdout=subprocess.PIPE,
        check=True,
        timeout=seconds + warm_s + 120,
    )
    return Load(**json.loads(done.stdout))


def _pieces(way: Way, work: Work) -> int:
    if not way.exact:
        return 0
    return work.tokens if work.stream or not way.gateway else 1


def in_turn(ways: Sequence[Way], work: Work, repeats: int, seconds: float) -> dict[str, list[Load]]:
    """Every way in every repeat, in turning order."""
    runs: dict[str, list[Load]] = {way.name: [] for way in ways}
    for way in ways:
        measure(way, work, 0.5, 0.5)
    for repeat in range(repeats):
        for way in ways if repeat % 2 == 0 else list(reversed(ways)):
            runs[way.name].append(measure(way, work, seconds))
            time.sleep(0.3)
    return runs


# ---- figures ------------------------------------------------------------------------------------

FIGURES: Final[Mapping[str, Callable[[Load], float]]] = {
    "requests/s": lambda run: run.requests / run.seconds,
    "pieces/s": lambda run: run.pieces / run.seconds,
    "first p50 ms": lambda run: run.first_ms[0],
    "first p99 ms": lambda run: run.first_ms[1],
    "whole p50 ms": lambda run: run.whole_ms[0],
    "whole p99 ms": lambda run: run.whole_ms[1],
    "gap p50 ms": lambda run: run.gaps_ms[0],
    "gap p99 ms": lambda run: run.gaps_ms[1],
    "gateway cores": lambda run: run.cpu_s["gateway"] / run.seconds,
    "backend cores": lambda run: run.cpu_s["backend"] / run.seconds,
    "client cores": lambda run: run.cpu_s["client"] / run.seconds,
    "requests / gateway CPU s": lambda run: _per(run.requests, run.cpu_s["gateway"]),
    "gateway CPU us / piece": lambda run: _per(1e6 * run.cpu_s["gateway"], run.pieces),
    "backend CPU us / piece": lambda run: _per(1e6 * run.cpu_s["backend"], run.pieces),
}


def _per(amount: float, by: float) -> float:
    return amount / by if by else 0.0


def medians(runs: Sequence[Load]) -> dict[str, tuple[float, float, float]]:
    """Figure -> (median, least, greatest) over the repeats."""
    found = {}
    for name, figure in FIGURES.items():
        values = [figure(run) for run in runs]
        found[name] = (statistics.median(values), min(values), max(values))
    return found


def table(work: Work, runs: Mapping[str, Sequence[Load]]) -> Table:
    """One row a figure, one column a way; least and greatest beside the median."""
    shown = Table(title=work.title)
    shown.add_column("")
    columns = {name: medians(loads) for name, loads in runs.items()}
    for name in columns:
        shown.add_column(name, justify="right")
    for figure in FIGURES:
        shown.add_row(
            figure,
            *(
                f"{_short(c[figure][0])} [dim]({_short(c[figure][1])}–{_short(c[figure][2])})[/dim]"
                for c in columns.values()
            ),
        )
    shown.add_row("failed", *(str(sum(run.failed for run in loads)) for loads in runs.values()))
    return shown


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


# ---- memory -------------------------------------------------------------------------------------


def memory(stack: Stack, requests: int, clients: int) -> dict[str, Any]:
    """Resident MiB of gateway and worker after a tenth of the requests, and after all of them."""
    through = stack.ways[1]
    work = Work("memory", "", (), clients=clients, tokens=4, stream=True)
    processes = {"gateway": psutil.Process(stack.gateway), "worker": psutil.Process(stack.worker)}
    points: list[dict[str, float]] = []
    sent = 0
    while sent < requests:
        run = measure(through, work, 5.0, 0.0)
        if run.failed:
            raise RuntimeError(f"{run.failed} requests failed: {run.first_error}")
        sent += run.requests
        rss = {name: p.memory_info().rss / 2**20 for name, p in processes.items()}
        points.append({"requests": sent, **rss})
        console.print(f"{sent} requests: " + ", ".join(f"{n} {v:.1f} MiB" for n, v in rss.items()))
    return {"points": points}


# ---- the program --------------------------------------------------------------------------------


@contextmanager
def _told(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    console.print(f"[dim]{what}: {time.monotonic() - began:.0f} s[/dim]")


def main(
    only: Annotated[
        str, typer.Option(help=f"measurements: {', '.join(WORKS)}, memory; empty takes all")
    ] = "",
    repeats: Annotated[int, typer.Option(min=1, help="3 or more for figures to report")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="counted seconds of each run")] = 5.0,
    requests: Annotated[int, typer.Option(min=1, help="requests of `memory`")] = 100_000,
    gateway_args: Annotated[str, typer.Option(help="more flags for the gateway")] = "",
    peer: Annotated[
        list[str] | None,
        typer.Option(help="another gateway beside ours: NAME=INTERPRETER; may be repeated"),
    ] = None,
    before: Annotated[
        str, typer.Option(help="folder of another checkout, whose ways are measured beside these")
    ] = "",
    out: Annotated[Path, typer.Option(help="JSON file for all runs")] = WORK / "gateway.json",
) -> None:
    """Measure the gateway with simulated workers behind it."""
    names = only.split(",") if only else [*WORKS, "memory"]
    if unknown := set(names) - {*WORKS, "memory"}:
        raise typer.BadParameter(f"no measurement {', '.join(sorted(unknown))}")
    report: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.gateway", *sys.argv[1:]]),
        "machine": machine(),
        "works": {},
    }
    failed = 0
    for name in names:
        with _told(name):
            if name == "memory":
                with our_stack(("--sim-tokens=4",), WORK / "logs", gateway_args.split()) as stack:
                    report["memory"] = memory(stack, requests, clients=32)
                continue
            work = WORKS[name]
            peers = dict(one.split("=", 1) for one in peer or ())
            runs = _run(work, repeats, seconds, gateway_args.split(), before, peers)
            console.print(table(work, runs))
            failed += sum(run.failed for loads in runs.values() for run in loads)
            report["works"][name] = {
                "work": asdict(work),
                "runs": {way: [asdict(run) for run in loads] for way, loads in runs.items()},
                "medians": {way: medians(loads) for way, loads in runs.items()},
            }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"All runs: {out}")
    if failed:
        console.print(f"[red]{failed} requests failed[/red]")
        raise typer.Exit(1)


def _run(
    work: Work,
    repeats: int,
    seconds: float,
    gateway_args: Sequence[str],
    before: str,
    peers: Mapping[str, str],
) -> dict[str, list[Load]]:
    logs, sim = WORK / "logs", (*work.sim, f"--sim-tokens={work.tokens}")
    with ExitStack() as running:
        stack = running.enter_context(our_stack(sim, logs, gateway_args))
        ways = list(stack.ways)
        if before:
            old = running.enter_context(
                our_stack(sim, logs / "before", gateway_args, source=before)
            )
            ways += [replace(way, name=f"{way.name} before") for way in old.ways]
        ways += running.enter_context(peer_ways(peers, stack, work.tokens, logs / "peers"))
        return in_turn(ways, work, repeats, seconds)


if __name__ == "__main__":
    typer.run(main)
