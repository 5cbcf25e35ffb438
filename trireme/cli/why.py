"""`trireme why REQUEST_ID`: why a gateway sent a request where it did, as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from urllib.parse import quote

import httpx
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from protocol.route_report import AttemptReport, RouteReport
from trireme.cli.fleet_api import FleetError, NoAnswer, complain, get, where_of


def show_route(
    clients: Sequence[httpx.Client], request_id: str, console: Console, *, as_json: bool
) -> int:
    """Show each attempt at a worker; returns the exit code."""
    try:
        report = read_route(clients, request_id)
    except FleetError as error:
        complain(error)
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


def read_route(clients: Sequence[httpx.Client], request_id: str) -> RouteReport:
    """What the gateways kept of the request: the one that answered it knows it, no other.

    Raises:
        FleetError: none answers or knows the request, or one wants a token.
    """
    missed = []
    for client in clients:
        try:
            return _read_route(client, request_id)
        except (NoAnswer, _Unknown) as error:
            missed.append(str(error))
    raise FleetError("; ".join(missed))


class _Unknown(FleetError):
    """This gateway does not know the request: another one may."""


def _read_route(client: httpx.Client, request_id: str) -> RouteReport:
    where = where_of(client)
    answer = get(client, f"/debug/route/{quote(request_id, safe='/')}", "gateway")
    try:
        if answer.status_code == 404:
            message = answer.json()["error"]["message"]
            raise _Unknown(f"the gateway at {where}: {message} Ask the one that answered it.")
        if answer.status_code == 401:
            message = answer.json()["error"]["message"]
            raise FleetError(f"the gateway at {where}: {message} See --cluster-token.")
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


def reason(attempt: AttemptReport) -> str:
    """Why the chosen worker won over the others that were compared."""
    costs = [one.cost for one in attempt.candidates]
    seen, least = len(costs), min(costs, default=0.0)
    if attempt.choices == 1:
        why = "the only worker that could be chosen"
    elif seen == 1:
        why = f"drawn from {attempt.choices} workers"
    elif costs.count(least) > 1:
        why = f"a tie of {costs.count(least)} at the least cost, drawn"
    else:
        why = f"least cost of {seen} compared"
    return why if attempt.choices in (1, seen) or seen == 1 else f"{why}, of {attempt.choices}"


def _below(attempt: AttemptReport) -> list[str]:
    took = f", {attempt.ended_s:.3f} s" if attempt.ended_s is not None else ""
    cached = "" if attempt.cached_tokens is None else f", {attempt.cached_tokens} were"
    lines = [
        f"{attempt.address}{took}; {reason(attempt)}",
        f"about {attempt.prompt_tokens} prompt tokens, "
        f"{attempt.predicted_cached_tokens} thought cached{cached}",
    ]
    for out in attempt.left_out:
        more = f" and {out.count - len(out.workers)} more" if out.count > len(out.workers) else ""
        lines.append(f"{out.reason}: {', '.join(map(short, out.workers))}{more}")
    return lines
