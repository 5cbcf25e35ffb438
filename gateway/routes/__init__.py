"""The OpenAI routes, one file each."""

from __future__ import annotations

from fastapi import APIRouter

from gateway.routes import chat, completions, embeddings, models, token_check

ROUTERS: tuple[APIRouter, ...] = (
    models.router,
    chat.router,
    completions.router,
    embeddings.router,
    token_check.router,
)
