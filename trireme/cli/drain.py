"""`trireme drain WORKER`: finds a worker at a controller, tells it to drain, watches it go."""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from typing import Final

import httpx
from pydantic import ValidationError
from rich.console import Console
from rich.status import Status

from protocol.fleet import DrainRequest, DrainStatus
from trireme.cli.fleet_api import (
    FleetError,
    ListedFleet,
    ListedWorker,
    bearer_of,
    complain,
    read_fleet,
    token_refused,
)

LOOK_S: Final = 0.2
CALL_TIMEOUT_S: Final = 5.0


class _Gone(Exception):
    """Nobody listens at the worker's address, or another process does."""


def drain(
    controllers: Sequence[httpx.Client],
    token: str,
    name: str,
    console: Console,
    *,
    grace_s: float | None,
    timeout_s: float,
) -> int:
    """Drain the worker of that name and wait until it is gone; returns the exit code.

    Args:
        token: the cluster token, for the worker.
        name: its address, or its instance id, or the beginning of one.
        grace_s: see `DrainRequest`.
        timeout_s: how long to wait for its end.
    """
    try:
        worker = find(read_fleet(controllers), name)
        with httpx.Client(
            base_url=worker.address,
            headers=bearer_of(token),
            timeout=CALL_TIMEOUT_S,
            verify=ssl.create_default_context(),
            trust_env=False,
        ) as client:
            _drain(client, worker, console, grace_s, timeout_s)
    except FleetError as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        console.print("not waiting any longer: the worker drains on", highlight=False)
        return 1
    return 0


def find(fleet: ListedFleet, name: str) -> ListedWorker:
    """The one worker that is meant.

    Raises:
        FleetError: there is none, more than one, or one that cannot drain.
    """
    wanted = name.rstrip("/")
    same = [w for w in fleet.workers if wanted in (w.instance_id, w.address, _bare(w.address))]
    found = same or [w for w in fleet.workers if wanted and w.instance_id.startswith(wanted)]
    if not found:
        raise FleetError(f"there is no worker {name!r}: `trireme status` lists them")
    if len(found) > 1:
        matching = ", ".join(f"{w.instance_id} at {w.address}" for w in found)
        raise FleetError(f"{name!r} is ambiguous: {matching}")
    if found[0].wire == "fastchat":
        raise FleetError(f"{found[0].address} is FastChat's worker, which cannot drain: stop it")
    return found[0]


def _drain(
    client: httpx.Client,
    worker: ListedWorker,
    console: Console,
    grace_s: float | None,
    timeout_s: float,
) -> None:
    deadline = time.monotonic() + timeout_s
    try:
        status = _ask(client, worker, grace_s)
    except (_Gone, httpx.TransportError) as error:
        reason = str(error) or type(error).__name__
        raise FleetError(f"{worker.address} cannot be reached: {reason}") from error
    if not status.began and grace_s is None:
        raise FleetError(
            f"{worker.address} is draining already, {_left(status)}: "
            "--now has other workers go on with them"
        )
    told = ""
    with console.status(f"draining {worker.address}") as spinner:
        while True:
            told = _show(console, spinner, worker, status, told)
            if time.monotonic() >= deadline:
                raise FleetError(
                    f"{worker.address} still drains after {timeout_s:g} s, {_left(status)}: "
                    "--now has other workers go on with them"
                )
            time.sleep(LOOK_S)
            try:
                status = _ask(client, worker, None)
            except _Gone:
                break
            except httpx.TransportError:
                continue  # it is leaving, or busy: the next look tells
    console.print(f"{worker.address} is gone", highlight=False)


def _ask(client: httpx.Client, worker: ListedWorker, grace_s: float | None) -> DrainStatus:
    """Begin the drain, or ask how it gets on.

    Raises:
        _Gone, httpx.TransportError. FleetError: the worker refuses.
    """
    body = DrainRequest(instance_id=worker.instance_id, grace_s=grace_s)
    headers = {"Content-Type": "application/json"}
    try:
        answer = client.post("/native/drain", content=body.model_dump_json(), headers=headers)
    except httpx.ConnectError as error:
        raise _Gone(str(error)) from error
    if answer.status_code == httpx.codes.MISDIRECTED_REQUEST:
        raise _Gone("another process serves there now")
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise token_refused(client, "worker", worker.address)
    try:
        return DrainStatus.model_validate_json(answer.raise_for_status().content)
    except (httpx.HTTPStatusError, ValidationError) as error:
        raise FleetError(f"{worker.address} answers {answer.status_code} to a drain") from error


def _show(
    console: Console, spinner: Status, worker: ListedWorker, status: DrainStatus, told: str
) -> str:
    """On a terminal the line changes, elsewhere each change is a line; returns what is told."""
    text = f"draining {worker.address}, {_left(status)}"
    if console.is_terminal:
        spinner.update(text)
    elif text != told:
        console.print(text, highlight=False)
    return text


def _left(status: DrainStatus) -> str:
    return f"{status.requests} request{'' if status.requests == 1 else 's'} left"


def _bare(address: str) -> str:
    """Without the scheme, as a narrow terminal shows it."""
    return address.partition("://")[2]
