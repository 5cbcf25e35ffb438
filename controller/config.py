"""Settings of the controller: flags, environment names, defaults and help, once."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from controller.dispatch import DispatchMethod
from trireme.service.settings import TierSettings, settings_config


class ControllerSettings(TierSettings):
    """Controller: knows which workers live, tells gateways, speaks FastChat's control wire."""

    model_config = settings_config("controller")

    port: int = Field(21001, ge=0, le=65535, description="port to bind; 0 takes a free one")
    dispatch_method: DispatchMethod = Field(
        "shortest_queue", description="how /get_worker_address chooses a worker"
    )
    heartbeat_ttl: float = Field(
        5.0,
        ge=0.1,
        le=3600,
        allow_inf_nan=False,
        description="seconds that a worker lives without a heartbeat",
    )
    max_workers: int = Field(4096, ge=1, le=100_000, description="most workers that are kept")

    @model_validator(mode="after")
    def _token_off_loopback(self) -> Self:
        self.require_token_off_loopback()
        return self
