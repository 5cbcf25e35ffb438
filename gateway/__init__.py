"""The gateway: OpenAI's HTTP API in front of the workers, without a torch import."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["create_openai_api_server"]


def create_openai_api_server() -> FastAPI:
    """The gateway's ASGI app, built from the environment (TRIREME_GATEWAY_*).

    Raises:
        pydantic.ValidationError: for a bad setting.
        LedgerError: for a usage ledger that was asked for and cannot be used.
    """
    from gateway.app import create_app
    from gateway.config import GatewaySettings
    from gateway.start import usage_db

    settings = GatewaySettings()
    return create_app(settings, usage_db=usage_db(settings))
