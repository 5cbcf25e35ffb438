"""`trireme why REQUEST_ID`: why a gateway sent a request where it did, as a table."""

from __future__ import annotations

import time
from urllib.parse import quote

import httpx
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from protocol.route_report import AttemptReport, RouteReport
from trireme.cli.fleet_api import FleetError


def show_route(client: httpx.Client, request_id: str, console: Console, *, as_json: bool) -> int:
    """Show each attempt at a worker; returns the exit code."""
    try:
        report = read_route(client, request_id)
    except FleetError as error:
        Console(stderr=True).print(Text.assemble(("✗", "bold red"), f" {error}"), soft_wrap=True)
        return 1
    if as_json:
        console.file.write(report.model_dump_json() + "\n")
        return 0
    for attempt in report.attempts:
        console.print(table(attempt))
        for line in _below(attempt):
            console.print(Text(line), soft_wrap=True)
    if report.attempts_left_out:
        console.print(f"and {report.attempts_left_out} attempts more")
    return 0


def read_route(client: httpx.Client, request_id: str) -> RouteReport:
    """What the gateway kept of the request.

    Raises:
        FleetError: it does not answer, wants a token, or does not know the request.
    """
    where = str(client.base_url).rstrip("/")
    try:
        answer = client.get(f"/debug/route/{quote(request_id, safe='/')}")
    except httpx.HTTPError as error:
        raise FleetError(f"no gateway answers at {where} ({error})") from error
    try:
        if answer.status_code in (401, 404):
            raise FleetError(f"the gateway at {where}: {answer.json()['error']['message']}")
        return RouteReport.model_validate_json(answer.raise_for_status().content)
    except (httpx.HTTPStatusError, ValidationError, ValueError, KeyError, TypeError) as error:
        raise FleetError(
            f"{where} answers {answer.status_code}, but not as a gateway of Trireme does"
        ) from error


def table(attempt: AttemptReport) -> Table:
    """The workers that were compared, the chosen one marked."""
    begun = time.strftime("%H:%M:%S", time.localtime(attempt.time))
    title = f"attempt {attempt.number} at {begun}: {attempt.outcome}"
    drawn = Table(title=title, title_justify="left", header_style="bold")
    drawn.add_column("Worker")
    for name in ("Reported", "Unreported", "Prefix", "Speed", "Cost"):
        drawn.add_column(name, justify="right")
    for one in attempt.candidates:
        chosen = one.worker == attempt.worker
        drawn.add_row(
            Text(("→ " if chosen else "  ") + short(one.worker)),
            f"{one.reported_tokens:,}",
            f"{one.unreported_tokens:,}",
            f"{one.matched_tokens:,}",
            f"{one.speed:,.0f}",
            f"{one.cost:.4g}",
            style="green" if chosen else "",
        )
    return drawn


def short(instance_id: str) -> str:
    """As `trireme status` shows it."""
    return instance_id.removeprefix("fastchat-")[:8]


def _below(attempt: AttemptReport) -> list[str]:
    took = f", {attempt.ended_s:.3f} s" if attempt.ended_s is not None else ""
    cached = "?" if attempt.cached_tokens is None else str(attempt.cached_tokens)
    lines = [
        f"{attempt.address}{took}; {attempt.prompt_tokens} prompt tokens, "
        f"{attempt.predicted_cached_tokens} thought cached, {cached} were"
    ]
    for out in attempt.left_out:
        more = f" and {out.count - len(out.workers)} more" if out.count > len(out.workers) else ""
        lines.append(f"{out.reason}: {', '.join(map(short, out.workers))}{more}")
    return lines
