"""Settings of the gateway: flags, environment names, defaults and help, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, model_validator

from gateway.keys import ApiKey, Limits, plain_key, read_keys
from gateway.routing import POLICIES
from trireme.service.addresses import base_urls
from trireme.service.settings import Strings, TierSettings, settings_config

CLOSING_S: Final = 3.0
"""Requests that are ended after the grace have so long to tell their clients."""
SUMMED_GAUGES: Final = ("trireme_gateway_requests_in_flight", "trireme_gateway_in_flight_drift")
"""Gauges of which each of several processes has its own share."""


def _policy(name: str) -> str:
    if name not in POLICIES:
        raise ValueError(f"choose one of {', '.join(POLICIES)}")
    return name


class GatewaySettings(TierSettings):
    """Gateway: the OpenAI API; chooses a worker for each request and streams its answer."""

    model_config = settings_config("gateway")

    port: int = Field(8000, ge=0, le=65535, description="port to bind; 0 takes a free one")
    processes: int = Field(
        1, ge=1, le=128, description="processes that share the port, one core's work each"
    )
    controller_address: Annotated[Strings, AfterValidator(base_urls)] = Field(
        ("http://localhost:21001",), description="controllers whose fleets are merged, a,b"
    )
    api_keys: Strings = Field((), description="keys that clients may use, a,b", repr=False)
    api_keys_file: Path | None = Field(
        None, description="file with one key a line, or in TOML a table a key; read again on change"
    )
    limit_requests: int | None = Field(
        None, ge=1, description="requests a minute of a key without a limit of its own (no limit)"
    )
    limit_tokens: int | None = Field(
        None, ge=1, description="tokens a minute of a key without a limit of its own (no limit)"
    )
    allow_credentials: bool = Field(False, description="CORS: allow credentials")
    allowed_origins: Strings = Field(("*",), description="CORS: allowed origins, a JSON list")
    allowed_methods: Strings = Field(("*",), description="CORS: allowed methods, a JSON list")
    allowed_headers: Strings = Field(("*",), description="CORS: allowed headers, a JSON list")
    routing: Annotated[str, AfterValidator(_policy)] = Field(
        "prefix_aware", description=f"how a worker is chosen: {', '.join(POLICIES)}"
    )
    share_prefix_cache: bool = Field(
        False, description="let requests of different API keys share cached beginnings of prompts"
    )
    lenient: bool = Field(
        False, description="ignore unknown request fields unless they would change the answer"
    )
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="largest request body")
    request_timeout_s: float = Field(
        3600.0, gt=0, allow_inf_nan=False, description="seconds after which a request fails"
    )
    connect_timeout_s: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="seconds to reach a worker"
    )
    first_event_timeout_s: float = Field(
        15.0, gt=0, allow_inf_nan=False, description="seconds for a worker to admit a request"
    )
    stall_timeout_s: float = Field(
        120.0, gt=0, allow_inf_nan=False, description="longest pause inside a worker's answer"
    )
    silence_timeout_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="longest silence of a worker's connection, on which it shows every 2 s that "
        "it lives",
    )
    restart_wait_s: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds that a begun request waits for its worker's engine to be restarted, "
        "when no other worker can go on with it",
    )
    stored_responses: int = Field(
        10_000, ge=0, description="responses kept for previous_response_id; 0 keeps none"
    )
    stored_response_bytes: int = Field(
        256 * 1024 * 1024, ge=0, description="most bytes of them together"
    )
    stored_response_ttl_s: float = Field(
        86_400.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds after its last use that one is kept",
    )
    usage_db: str = Field(
        "auto",
        description="SQLite file of the usage ledger; auto is the user's own, none keeps none",
    )
    usage_days: int = Field(400, ge=1, le=36_500, description="days that its rows are kept")
    drain_delay_s: float = Field(
        0.5,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="seconds on SIGTERM in which it still serves while /readyz says 503",
    )
    drain_grace_s: float = Field(
        120.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds after that which running requests get",
    )

    @model_validator(mode="after")
    def _credentials_need_origins(self) -> Self:
        if self.allow_credentials and "*" in self.allowed_origins:
            raise ValueError(
                "--allow-credentials with --allowed-origins '[\"*\"]' would let every site act "
                "for its visitors: name the origins"
            )
        return self

    @model_validator(mode="after")
    def _keys_file_is_good(self) -> Self:
        self.accepted_keys()
        return self

    @property
    def default_limits(self) -> Limits:
        """Of callers without limits of their own."""
        return Limits(self.limit_requests or 0, self.limit_tokens or 0)

    def accepted_keys(self) -> tuple[ApiKey, ...]:
        """All API keys, from flag and file; what the file says of a key counts.

        Raises:
            ValueError: when the file cannot be read, holds no key or something else.
        """
        keys = [plain_key(key, self.default_limits) for key in self.api_keys]
        if self.api_keys_file is not None:
            try:
                keys += read_keys(self.api_keys_file, self.default_limits)
            except ValueError as error:
                raise ValueError(f"--api-keys-file {error}") from error
        return tuple({key.digest: key for key in keys}.values())
