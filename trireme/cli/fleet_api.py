"""Asks controllers and gateways for what operators want to know, for people.

Of several addresses the first that answers is asked.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Sequence

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.text import Text

from protocol.fleet import WorkerRecord
from trireme.service.addresses import base_urls

TIMEOUT_S = 5.0


class FleetError(Exception):
    """The fleet could not be read; the message is one sentence for a person."""


class ListedWorker(WorkerRecord):
    """A worker's record with its ages.

    Attributes:
        known_s: seconds since it joined. heard_s: seconds since its last heartbeat.
        lease_left_s: seconds; None when it never expires.
        held: whether it is silent and kept only because most of its model fell silent at once.
    """

    known_s: float = 0.0
    heard_s: float = 0.0
    lease_left_s: float | None = None
    held: bool = False


class ListedFleet(BaseModel):
    """What `GET /fleet/workers` answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    complete: bool
    workers: tuple[ListedWorker, ...]


class NoAnswer(FleetError):
    """Nobody answers at an address as HTTP has it: another one may."""


@contextlib.contextmanager
def operator_clients(addresses: str, token: str) -> Iterator[tuple[httpx.Client, ...]]:
    """A client of each tier of the list `a,b`, with the cluster token if there is one.

    Raises:
        FleetError: one of them is no base URL.
    """
    try:
        urls = base_urls(tuple(one.strip() for one in addresses.split(",") if one.strip()))
    except ValueError as error:
        raise FleetError(str(error)) from error
    # the context reads SSL_CERT_FILE, which `trust_env=False` would have httpx ignore
    trusted = ssl.create_default_context()
    with contextlib.ExitStack() as stack:
        yield tuple(
            stack.enter_context(
                httpx.Client(
                    base_url=url,
                    headers=bearer_of(token),
                    timeout=TIMEOUT_S,
                    verify=trusted,
                    trust_env=False,
                )
            )
            for url in urls
        )


def complain(error: FleetError) -> None:
    """One line on stderr."""
    Console(stderr=True).print(Text.assemble(("✗", "bold red"), f" {error}"), soft_wrap=True)


def bearer_of(token: str) -> dict[bytes, bytes]:
    """The header that shows the cluster token, if there is one."""
    return {b"authorization": b"Bearer " + token.encode()} if token else {}


def get(client: httpx.Client, path: str, tier: str) -> httpx.Response:
    """What the tier answers, whatever its status.

    Raises:
        NoAnswer: nothing, or nothing of HTTP.
    """
    where = where_of(client)
    try:
        return client.get(path)
    except httpx.HTTPError as error:
        raise NoAnswer(f"no {tier} answers at {where} ({_reason(where, error)})") from error


def token_refused(client: httpx.Client, tier: str, where: str) -> FleetError:
    """What a 401 means: another token than the client's, or none at all."""
    if "authorization" in client.headers:
        return FleetError(f"the {tier} at {where} does not accept this cluster token")
    return FleetError(
        f"the {tier} at {where} wants its cluster token: "
        "set TRIREME_CLUSTER_TOKEN or give --cluster-token"
    )


def read_fleet(clients: Sequence[httpx.Client]) -> ListedFleet:
    """The fleet as the first of the controllers that answers knows it.

    Raises:
        FleetError: none answers, or that one wants a token, or is no controller of ours.
    """
    silent = []
    for client in clients:
        try:
            return _read_fleet(client)
        except NoAnswer as error:
            silent.append(str(error))
    raise FleetError("; ".join(silent))


def _read_fleet(client: httpx.Client) -> ListedFleet:
    answer = get(client, "/fleet/workers", "controller")
    if answer.status_code == 401:
        raise token_refused(client, "controller", where_of(client))
    try:
        return ListedFleet.model_validate_json(answer.raise_for_status().content)
    except (httpx.HTTPStatusError, ValidationError) as error:
        raise FleetError(
            f"{where_of(client)} answers {answer.status_code}, "
            "but not as a controller of Trireme does"
        ) from error


def where_of(client: httpx.Client) -> str:
    """The address that the client is of."""
    return str(client.base_url).rstrip("/")


def _reason(where: str, error: httpx.HTTPError) -> str:
    """Why nobody answered; the other scheme where that is what was wrong."""
    text = str(error) or type(error).__name__
    plain = where.removeprefix("https://")
    if plain != where and any(word in text for word in ("WRONG_VERSION", "RECORD_LAYER")):
        return f"it speaks plain HTTP: write http://{plain}"
    if plain == where and isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return f"{text}; if it serves HTTPS, write https://{where.removeprefix('http://')}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"{text}; SSL_CERT_FILE names the authority to trust"
    return text
