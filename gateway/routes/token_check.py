"""POST /api/v1/token_check: whether prompts fit their model."""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import APIRouter, Request, Response

from gateway.metering import metered
from gateway.openapi import body_of
from gateway.state import admit, arrival_of, gateway_of, read
from protocol.generation import TokenizeRequest
from protocol.openai import (
    TokenCheckItem,
    TokenCheckPrompt,
    TokenCheckRequest,
    TokenCheckResponse,
)
from trireme.service.streaming import Leash

router = APIRouter(tags=["tokens"])

AT_ONCE: Final = 8


@router.post(
    "/api/v1/token_check",
    response_model=TokenCheckResponse,
    openapi_extra=body_of(TokenCheckRequest),
)
async def token_check(request: Request) -> Response:
    """Counts each prompt's tokens and says whether `max_tokens` more fit into the context."""
    asked = await read(request, TokenCheckRequest)
    arrival, gateway = arrival_of(request), gateway_of(request)
    for prompt in asked.prompts:
        admit(request, prompt.model)
    turns = asyncio.Semaphore(AT_ONCE)

    async def check(prompt: TokenCheckPrompt) -> TokenCheckItem:
        async with turns:
            wanted = TokenizeRequest(model=prompt.model, prompt=prompt.prompt)
            tokens, context = await gateway.dispatcher.count(
                wanted, arrival.deadline_s, arrival.trail
            )
        fits = tokens + prompt.max_tokens <= context
        return TokenCheckItem(fits=fits, tokenCount=tokens, contextLength=context)

    async def check_all() -> list[TokenCheckItem]:
        tasks = [asyncio.create_task(check(prompt)) for prompt in asked.prompts]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with metered(gateway, arrival, asked.prompts[0].model, is_counted=False):
        async with Leash(request.scope):
            found = TokenCheckResponse(prompts=await check_all())
    return Response(found.to_json(), media_type="application/json")
