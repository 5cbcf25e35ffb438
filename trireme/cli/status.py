"""`trireme status`: the fleet as a table."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Final

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trireme.cli.fleet_api import FleetError, ListedFleet, ListedWorker, complain, read_fleet

REFRESH_S: Final = 1.0
WIDE: Final = 110
"""Columns of a terminal that shows the whole table; a narrower one leaves out `_WIDE_ONLY`."""
_WIDE_ONLY: Final = frozenset({"Engine", "KV", "Tok/s", "Heard", "Age"})
"""`Worker` stays: answers' headers, logs and `trireme why` name a worker by it."""
_TEXTS: Final = ("Worker", "Address", "Model", "State", "Engine")
_NUMBERS: Final = ("Context", "Run", "Wait", "KV", "Tok/s", "Heard", "Age")
_STATE_STYLES: Final = {"ready": "green", "starting": "cyan", "draining": "yellow", "failed": "red"}


def show_status(
    clients: Sequence[httpx.Client], console: Console, *, as_json: bool, watch: bool
) -> int:
    """Show the fleet once, or again each second until Ctrl-C; returns the exit code."""
    try:
        if not watch:
            _print(read_fleet(clients), console, as_json)
        elif as_json or not console.is_terminal:
            for fleet in _again_and_again(clients):
                _print(fleet, console, as_json)
        else:
            with Live(console=console, auto_refresh=False, screen=False) as live:
                for fleet in _again_and_again(clients):
                    live.update(table(fleet, console.width), refresh=True)
    except FleetError as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def table(fleet: ListedFleet, width: int = WIDE) -> Table:
    """One row for each model of each worker, for a terminal of `width` columns; below them why
    workers have failed."""
    notes = [] if fleet.complete else ["the controller has just started: more may come"]
    notes += [f"{one.short_id}: {one.reason}" for one in fleet.workers if one.reason]
    drawn = Table(caption=Text("\n".join(notes)) if notes else None, header_style="bold")
    shown = [width >= WIDE or name not in _WIDE_ONLY for name in (*_TEXTS, *_NUMBERS)]
    for name in itertools.compress(_TEXTS, shown):
        drawn.add_column(name, overflow="fold", min_width=len(name))
    for name in itertools.compress(_NUMBERS, shown[len(_TEXTS) :]):
        drawn.add_column(name, justify="right", no_wrap=True)
    for worker in sorted(fleet.workers, key=lambda each: each.address):
        for number, model in enumerate(worker.models):
            first = number == 0
            address = worker.address if width >= WIDE else worker.address.partition("://")[2]
            cells: tuple[Text | str, ...] = (
                Text(worker.short_id if first else ""),
                Text(address if first else ""),
                Text(model.name),
                _state(worker),
                Text(model.engine or ("FastChat" if worker.wire == "fastchat" else "")),
                f"{model.context_length:,}" if model.context_length else "?",
                *(_load(worker) if first else ("",) * 6),
            )
            drawn.add_row(*itertools.compress(cells, shown))
    if not fleet.workers:
        drawn.caption = "no worker is registered"
    return drawn


def duration(seconds: float) -> str:
    """Seconds in the two units that tell most: `0.4 s`, `2 m 05 s`, `3 h 20 m`, `5 d 02 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for unit, size, below, name in (
        (86400, 3600, "h", "d"),
        (3600, 60, "m", "h"),
        (60, 1, "s", "m"),
    ):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // size:02d} {below}"
    return f"{whole} s"


def _again_and_again(clients: Sequence[httpx.Client]) -> Iterator[ListedFleet]:
    while True:
        yield read_fleet(clients)
        time.sleep(REFRESH_S)


def _print(fleet: ListedFleet, console: Console, as_json: bool) -> None:
    if as_json:
        console.file.write(fleet.model_dump_json() + "\n")
        console.file.flush()
    else:
        console.print(table(fleet, console.width))


def _state(worker: ListedWorker) -> Text:
    state = "silent" if worker.held else worker.state
    return Text(state, style=_STATE_STYLES.get(state, "red"))


def _load(worker: ListedWorker) -> tuple[str, ...]:
    """Running, waiting, KV use, tokens/s, heard, age."""
    ages = (duration(worker.heard_s), duration(worker.known_s))
    if worker.wire == "fastchat":
        return ("?", str(worker.queue_length), "?", "?", *ages)
    load = worker.load
    return (
        f"{load.running}/{load.capacity}" if load.capacity else str(load.running),
        str(load.waiting),
        f"{(1 - load.kv_free) * 100:.0f}%",
        f"{load.decode_tps:,.0f}" if load.decode_tps else "-",
        *ages,
    )
