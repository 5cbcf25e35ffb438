"""Asks a controller for its fleet, for people."""

from __future__ import annotations

import ssl

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.fleet import WorkerRecord


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


def operator_client(address: str, token: str) -> httpx.Client:
    """A client of the tier at `address`, with the cluster token if there is one."""
    # the context reads SSL_CERT_FILE, which `trust_env=False` would have httpx ignore
    trusted = ssl.create_default_context()
    return httpx.Client(
        base_url=address, headers=bearer_of(token), timeout=5, verify=trusted, trust_env=False
    )


def bearer_of(token: str) -> dict[bytes, bytes]:
    """The header that shows the cluster token, if there is one."""
    return {b"authorization": b"Bearer " + token.encode()} if token else {}


def read_fleet(client: httpx.Client) -> ListedFleet:
    """The fleet as the controller knows it.

    Raises:
        FleetError: it does not answer, wants a token, or is no controller of ours.
    """
    where = str(client.base_url).rstrip("/")
    try:
        answer = client.get("/fleet/workers")
    except httpx.HTTPError as error:
        raise FleetError(f"no controller answers at {where} ({error})") from error
    if answer.status_code == 401:
        raise FleetError(
            f"the controller at {where} wants its cluster token: "
            "set TRIREME_CLUSTER_TOKEN or give --cluster-token"
        )
    try:
        return ListedFleet.model_validate_json(answer.raise_for_status().content)
    except (httpx.HTTPStatusError, ValidationError) as error:
        raise FleetError(
            f"{where} answers {answer.status_code}, but not as a controller of Trireme does"
        ) from error
