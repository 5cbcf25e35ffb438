"""`python -m tests.chaos`, `make chaos`: faults on real processes, and one table at the end."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tests.chaos import report
from tests.chaos.catalogue import ROWS
from tests.chaos.runner import play
from tests.chaos.scene import SHORT, Alone, Result, Row, Scale

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    only: Annotated[str, typer.Option(help="names of rows, a,b; a beginning will do")] = "",
    short: Annotated[bool, typer.Option("--short", help="fewer clients, shorter faults")] = False,
    list_rows: Annotated[bool, typer.Option("--list", help="tell the rows and stop")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the results")] = None,
    slack: Annotated[
        float, typer.Option(min=1, help="multiplies the promised times, on a busy machine")
    ] = 1.0,
    logs: Annotated[Path | None, typer.Option(help="folder for the tiers' logs")] = None,
) -> None:
    """Starts 2 controllers, 2 gateways and 3 workers, holds 50 streams and 20 plain requests, and
    plays one fault after the other. Exit code 1 when anything was lost or a promise not kept."""
    rows = chosen(only)
    console = Console(highlight=False)
    if list_rows:
        for row in rows:
            console.print(f"{row.name:24}{row.fault}: {row.promise.text}", markup=False)
        return
    scale = replace(SHORT if short else Scale(), slack=slack)
    folder = logs or Path(tempfile.mkdtemp(prefix="trireme-chaos-"))
    console.print(f"{len(rows)} rows; the tiers' logs are in {folder}", markup=False)
    load_before = os.getloadavg()[0]
    results = asyncio.run(_all(rows, scale, folder, console))
    load_after = os.getloadavg()[0]
    loads = f"load average {load_before:.1f} before, {load_after:.1f} after"
    console.print(f"{os.cpu_count()} cores, {loads}")
    wide = Console(highlight=False, width=max(console.width, 180))
    wide.print(report.table(results))
    if json_file is not None:
        report.write(results, json_file)
        json_file.with_suffix(".md").write_text(report.markdown(results) + "\n")
    sys.exit(any(one.verdict not in ("kept", "skipped") for one in results))


def chosen(names: str) -> list[Row | Alone]:
    """The rows whose name begins with one of these; all without any."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if not any(row.name.startswith(name) for row in ROWS):
            raise typer.BadParameter(f"no row is called {name!r}; --list tells them all")
    return [row for row in ROWS if not wanted or row.name.startswith(tuple(wanted))]


async def _all(
    rows: list[Row | Alone], scale: Scale, folder: Path, console: Console
) -> list[Result]:
    results: list[Result] = []
    say = lambda text: console.print(f"  … {text}", markup=False)  # noqa: E731
    async for result in play(rows, scale, folder, say):
        results.append(result)
        tally = result.tally
        seen = f"{tally.requests} requests, {tally.lost} lost, {tally.differing} differ"
        done = f"[{len(results)}/{len(rows)}] {result.name}: {result.verdict}"
        console.print(f"{done} ({seen}, {result.seconds:.0f} s)", markup=False)
        report.explain(console, result)
    return results


if __name__ == "__main__":
    app()
