"""The clients' routes, one file each: OpenAI's, and Anthropic's in `messages`."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.routing import APIRoute

from gateway.routes import (
    capabilities,
    chat,
    completions,
    debug,
    embeddings,
    messages,
    models,
    responses,
    scores,
    token_check,
    tokens,
)
from trireme.service.shortcut import routes_of

ROUTERS: tuple[APIRouter, ...] = (
    models.router,
    capabilities.router,
    chat.router,
    completions.router,
    responses.router,
    messages.router,
    embeddings.router,
    scores.router,
    token_check.router,
    tokens.router,
    debug.router,
)

BUSY_ROUTES: tuple[APIRoute, ...] = (
    *routes_of(chat.router, "/v1/chat/completions"),
    *routes_of(completions.router, "/v1/completions"),
    *routes_of(responses.router, "/v1/responses"),
    *routes_of(messages.router, "/v1/messages"),
    *routes_of(embeddings.router, "/v1/embeddings"),
)
"""Reached past the router."""
