"""POST /v1/completions."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from gateway.answer import respond
from gateway.openapi import body_of
from gateway.render import AnswerHead, CompletionRenderer
from gateway.state import admit, arrival_of, gateway_of, read
from gateway.translate import check_limits, completion_requests
from protocol.openai import CompletionRequest, CompletionResponse
from trireme.service.ids import short_id

router = APIRouter(tags=["completions"])


@router.post(
    "/v1/completions",
    response_model=CompletionResponse,
    openapi_extra=body_of(CompletionRequest, streams=CompletionResponse),
)
async def completions(request: Request) -> Response:
    """Goes on from one prompt or several, whole or as server-sent events."""
    asked = await read(request, CompletionRequest)
    arrival = arrival_of(request)
    admit(request, asked.model)
    check_limits(asked, gateway_of(request).view.snapshot.models.get(asked.model))
    answer_id = f"cmpl-{short_id()}"
    requests = completion_requests(
        asked,
        request_id=f"{arrival.request_id}:{answer_id}",
        deadline_s=arrival.deadline_s,
        cache_salt=arrival.cache_salt,
    )
    renderer = CompletionRenderer(
        AnswerHead(answer_id, int(time.time()), asked.model, n=asked.n, prompts=len(requests)),
        echo=asked.echo,
        logprobs=asked.logprobs is not None,
        options=asked.stream_options,
        prompt_logprobs=asked.prompt_logprobs is not None,
        as_ids=asked.return_tokens_as_token_ids,
    )
    return await respond(request, requests, renderer, arrival, stream=asked.stream)
