"""One measurement from the options to the files: start, measure, show, write."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import plots, summary, tables
from benchmarks.bound import Bound, BoundFailed, time_products
from benchmarks.client import Endpoint, Limit
from benchmarks.machine import machine, versions
from benchmarks.measure import Measured, Plan, measure
from benchmarks.progress import Steps
from benchmarks.systems import Target
from benchmarks.targets import (
    Started,
    first_model,
    make_model_folder,
    own_targets,
    start_peers,
)
from benchmarks.workloads import Cell, Workload, cells_of

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure, and where the results go.

    Attributes:
        clients, rates_per_s: levels of the closed loop, or of the open one if there are rates.
        peers: (name, interpreter, program or URL) of others to measure beside us.
        only: system -> the only numbers of clients at which it is measured.
        run_limit_s: how long a run of a closed loop lasts at most; 0 is no limit.
        base_url: a server that runs already, to be measured alone; empty starts our own stack.
        model_path: folder for the own stack; empty makes the model `size`.
        out: JSON file; tables and pictures go beside it.
    """

    workloads: Sequence[Workload]
    clients: Sequence[int]
    out: Path
    work: Path
    rates_per_s: Sequence[float] = ()
    open_s: float = 30.0
    requests_per_client: int = 2
    repeats: int = 3
    run_limit_s: float = 0.0
    peers: Sequence[tuple[str, str]] = ()
    only: Mapping[str, frozenset[int]] = field(default_factory=dict)
    base_url: str = ""
    model: str = ""
    model_path: str = ""
    size: str = "400m"
    engine: str = "paged"
    prompt_lookup: bool = False
    worker_args: Sequence[str] = ()
    direct: bool = True
    pause: bool = True
    bound: bool = True
    plots: bool = True
    cpu: bool = False
    endpoint: Endpoint = "chat"
    temperature: float = 0.0
    seed: int = 0
    api_key: str = ""

    @property
    def cells(self) -> list[Cell]:
        """All cells of all workloads."""
        return [
            cell
            for workload in self.workloads
            for cell in cells_of(workload, self.clients, self.rates_per_s)
        ]

    def plan(self, limit: Limit | None) -> Plan:
        """How they are measured."""
        return Plan(
            self.cells,
            repeats=self.repeats,
            requests_per_client=self.requests_per_client,
            open_s=self.open_s,
            seed=self.seed,
            pause=self.pause,
            endpoint=self.endpoint,
            temperature=self.temperature,
            api_key=self.api_key,
            only_clients=self.only,
            limit=limit,
        )


def objection(options: Options) -> str | None:
    """What does not go together, or is needed and not there; said before anything is measured."""
    if options.base_url and options.peers:
        return "--peer starts servers beside our own stack: it does not go with --base-url."
    if options.peers and options.engine == "sim" and not options.model_path:
        return "--peer needs a model to serve: add --model-path, or leave --engine sim."
    if options.model and not options.base_url:
        return "--model names a model of --base-url; --model-path says what our stack serves."
    if options.plots and importlib.util.find_spec("matplotlib") is None:
        return "Pictures need matplotlib: pip install 'trireme[bench]', or leave them: --no-plots."
    own = not options.base_url and options.engine != "sim"
    if own and importlib.util.find_spec("torch") is None:
        return "A stack of its own needs torch: pip install 'trireme[worker]', or --engine sim."
    if options.run_limit_s and not own and not _tokenizer(Path(options.model_path or ".")):
        return "--run-limit needs a --model-path with a tokenizer.json, to count what it cuts off."
    return None


def _tokenizer(folder: Path) -> Path | None:
    file = folder / "tokenizer.json"
    return file if file.is_file() else None


def bench(options: Options, console: Console, command: Sequence[str]) -> int:
    """Measure and write; returns the exit code: 1 when any request failed, 130 after Ctrl-C.

    Args:
        command: argv, for the report.
    """
    if reason := objection(options):
        console.print(reason, style="red", markup=False)
        return 2

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    about = {"machine": machine(), "versions": versions(), "command": shlex.join(command)}
    about |= {"made": datetime.now(UTC).isoformat(timespec="seconds")}
    measured, interrupted = Measured(), False
    try:
        folder = _model_folder(options, say)
        limit = _limit(options, folder)
        products = _products(options, folder, say)
        with _started(options, folder, say) as started, Steps(console) as steps:
            try:
                measure(started.targets, options.plan(limit), steps.say, measured)
            except KeyboardInterrupt:
                interrupted = True
        if not interrupted:
            # before and after: the least time of both is nearest to what the machine can do
            products += _products(options, folder, say)
        bound = Bound.of(*products) if products else None
    except (RuntimeError, OSError) as failure:
        console.print(str(failure), style="red", markup=False)
        return 1
    rows = summary.rows_of(measured.results, bound)
    report = about | _settings(options) | _outcome(started, measured, bound, rows)
    report["interrupted"] = interrupted
    code = _show(options, console, started, measured, rows, report)
    if interrupted:
        console.print("Interrupted: not all was measured.", style="red")
    return INTERRUPTED if interrupted else code


def _model_folder(options: Options, say: Callable[[str], object]) -> Path | None:
    """The own stack's model; None where none is needed."""
    if options.base_url or options.engine == "sim":
        return Path(options.model_path) if options.model_path else None
    if options.model_path:
        return Path(options.model_path)
    parent = options.work / "models"
    if not (parent / f"bench-{options.size}").is_dir():
        say(f"making the model {parent / f'bench-{options.size}'} (once)")
    return make_model_folder(options.size, parent)


def _limit(options: Options, folder: Path | None) -> Limit | None:
    """The limit of a run, with the tokenizer of the model that counts what was cut off.

    Raises:
        OSError: there is no tokenizer.
    """
    if not options.run_limit_s:
        return None
    file = _tokenizer(folder or Path())
    if file is None:
        raise OSError(f"--run-limit needs a tokenizer.json, and {folder} has none")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return Limit(
        options.run_limit_s, lambda text: len(tokenizer.encode(text, add_special_tokens=False))
    )


def _products(
    options: Options, folder: Path | None, say: Callable[[str], object]
) -> list[dict[str, Any]]:
    """The times of the model's matrix products; none where no bound is wanted or known."""
    levels = [cell.clients for cell in options.cells if cell.loop == "closed"]
    if not options.bound or options.base_url or folder is None or not levels:
        return []
    say("timing the model's matrix products alone")
    try:
        return [time_products(folder, levels)]
    except BoundFailed as failure:
        say(f"no bound: {failure}")
        return []


@contextlib.contextmanager
def _started(
    options: Options, folder: Path | None, say: Callable[[str], object]
) -> Iterator[Started]:
    """All systems, running."""
    started = Started()
    logs = options.work / "logs"
    with contextlib.ExitStack() as stack:
        if options.base_url:
            name = options.model or first_model(options.base_url, options.api_key)
            started.targets.append(Target("server", options.base_url, name))
        else:
            lookup = "auto" if options.prompt_lookup else "off"
            flags = ["--engine", options.engine, "--prompt-lookup", lookup, *options.worker_args]
            if folder is not None:
                flags += ["--model-path", str(folder)]
            say("starting a stack on free ports")
            begin = time.monotonic()
            own = stack.enter_context(own_targets(flags, logs, direct=options.direct))
            say(f"it is ready after {time.monotonic() - begin:.1f} s")
            started.targets += own
            if options.peers and folder is not None:
                start_peers(options.peers, folder, logs, stack, started, say)
        yield started


def _settings(options: Options) -> dict[str, Any]:
    return {
        "repeats": options.repeats,
        "requests_per_client": options.requests_per_client,
        "seed": options.seed,
        "run_limit_s": options.run_limit_s or None,
        "pause": options.pause,
        "endpoint": options.endpoint,
        "temperature": options.temperature,
        "prompt_lookup": options.prompt_lookup,
        "open_loop_seconds": options.open_s if options.rates_per_s else None,
    }


def _outcome(
    started: Started, measured: Measured, bound: Bound | None, rows: Sequence[summary.Row]
) -> dict[str, Any]:
    return {
        "systems": [
            {"system": target.system, "model": target.model, "wire": target.wire}
            for target in started.targets
        ],
        "left_out": started.left_out,
        "lost": measured.lost,
        "bound": bound.as_json() if bound else None,
        "workloads": summary.as_json(rows),
    }


def _show(
    options: Options,
    console: Console,
    started: Started,
    measured: Measured,
    rows: Sequence[summary.Row],
    report: dict[str, Any],
) -> int:
    """Print the tables, write the files; returns the exit code."""
    for table in tables.terminal_tables(rows, cpu=options.cpu, width=console.width):
        console.print(table)
    if cut := sum(run.cut for row in rows for run in row.runs):
        console.print(
            f"{cut} answers were cut off after {options.run_limit_s:g} s: what they had brought by "
            "then counts.",
            style="yellow",
            markup=False,
        )
    if any(not run.usage_known for row in rows for run in row.runs):
        names = dict.fromkeys(row.system for row in rows for r in row.runs if not r.usage_known)
        console.print(
            f"{', '.join(names)} sent no usage: an answer that ended for its length has the "
            "length asked for, another one as many tokens as pieces.",
            style="yellow",
            markup=False,
        )
    out = options.out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    page = out.with_suffix(".md")
    page.write_text(tables.markdown(rows, cpu=options.cpu))
    pictures = plots.draw(rows, out.with_suffix("")) if options.plots else []
    for path in (out, page, *pictures):
        console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
    for name, reason in started.left_out.items():
        console.print(f"{name} was left out: {reason}", style="yellow", markup=False)
    failed = summary.failures(measured, rows)
    for line in failed:
        console.print(line, style="red", markup=False)
    return 1 if failed else 0
