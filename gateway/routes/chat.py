"""POST /v1/chat/completions, and FastChat's /api/v1/chat/completions."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from gateway.answer import respond
from gateway.openapi import body_of
from gateway.render import AnswerHead
from gateway.render_chat import ChatRenderer
from gateway.state import admit, arrival_of, gateway_of, read
from gateway.translate import chat_request, check_limits, echoed_text
from protocol.openai import (
    APIChatCompletionRequest,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
)
from trireme.service.ids import short_id

router = APIRouter(tags=["chat"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletionResponse,
    openapi_extra=body_of(ChatCompletionRequest, streams=ChatCompletionStreamResponse),
)
async def chat(request: Request) -> Response:
    """Answers a conversation, whole or as server-sent events."""
    return await _chat(request, await read(request, ChatCompletionRequest))


@router.post(
    "/api/v1/chat/completions",
    response_model=ChatCompletionResponse,
    openapi_extra=body_of(APIChatCompletionRequest, streams=ChatCompletionStreamResponse),
)
async def api_chat(request: Request) -> Response:
    """The same; `messages` may be one text, which is taken as a rendered prompt."""
    return await _chat(request, await read(request, APIChatCompletionRequest))


async def _chat(request: Request, asked: ChatCompletionRequest) -> Response:
    arrival = arrival_of(request)
    admit(request, asked.model)
    check_limits(asked, gateway_of(request).view.snapshot.models.get(asked.model))
    answer_id = f"chatcmpl-{short_id()}"
    generate = chat_request(
        asked,
        request_id=f"{arrival.request_id}:{answer_id}",
        deadline_s=arrival.deadline_s,
        cache_salt=arrival.cache_salt,
    )
    renderer = ChatRenderer(
        AnswerHead(answer_id, int(time.time()), asked.model, n=asked.n),
        lead=echoed_text(asked),
        forced=asked.tool_use.forced is not None,
        named=asked.tool_use.named,
        options=asked.stream_options,
        prompt_logprobs=asked.prompt_logprobs is not None,
        as_ids=asked.return_tokens_as_token_ids,
    )
    return await respond(request, [generate], renderer, arrival, stream=asked.stream)
