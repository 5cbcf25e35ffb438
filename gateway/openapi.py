"""What the gateway's OpenAPI document says beyond its routes: bodies, streams, errors, headers."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from gateway.errors import ANTHROPIC_PATHS
from gateway.limits import LIMIT_HEADERS
from protocol.anthropic import CountTokensRequest, MessagesRequest
from protocol.anthropic_answers import MessageError
from protocol.create_response import CreateResponse
from protocol.openai import (
    APIChatCompletionRequest,
    ChatCompletionRequest,
    ChatCompletionStreamResponse,
    CompletionRequest,
    CompletionResponse,
    EmbeddingsRequest,
    ErrorResponse,
    TokenCheckRequest,
)
from protocol.texts import (
    DetokenizationRequest,
    RerankRequest,
    ScoringRequest,
    TokenizationRequest,
)
from trireme.service import openapi

ABOUT: Final = """\
OpenAI's API over a fleet of workers, with extensions, and Anthropic's Messages API.

In every body an explicit null means the field's default, and a field that is not described is a
400 unless the gateway is lenient. What a certain model can be asked for is told by
`GET /v1/capabilities`.
"""

DESCRIBED: Final = openapi.Described(
    about=ABOUT,
    key="an API key, where the gateway has any",
    key_header="x-api-key",
    bodies=(
        APIChatCompletionRequest,
        ChatCompletionRequest,
        CompletionRequest,
        CountTokensRequest,
        CreateResponse,
        DetokenizationRequest,
        EmbeddingsRequest,
        MessagesRequest,
        RerankRequest,
        ScoringRequest,
        TokenCheckRequest,
        TokenizationRequest,
    ),
    answers=(ChatCompletionStreamResponse, CompletionResponse),
    failure=ErrorResponse,
    failures={ANTHROPIC_PATHS: MessageError},
    response_headers={
        **{
            name: {
                "description": "of a caller with limits: the limit a minute, what is left of it, "
                "or the time until all is there again, such as `1.5s`",
                "schema": {"type": "string" if "reset" in name else "integer"},
            }
            for name in LIMIT_HEADERS
        },
        "x-request-id": {
            "description": "the client's own when it sent a plain one, else a new one",
            "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:+/=@-]{1,128}$"},
        },
        "x-trireme-worker": {
            "description": "the worker that was tried last, as `trireme status` shows it; "
            "absent where none was",
            "schema": {"type": "string", "maxLength": 8},
        },
        "x-trireme-attempts": {
            "description": "workers that were tried so far; 1 when the first one answered",
            "schema": {"type": "integer", "minimum": 1},
        },
    },
    parameters=(
        {
            "name": "x-request-timeout-ms",
            "in": "header",
            "required": False,
            "description": "milliseconds until a 504, where that is less than the gateway's limit",
            "schema": {"type": "integer", "minimum": 1, "maximum": 10**12 - 1},
        },
    ),
)


def body_of(
    model: type[BaseModel], *, streams: type[BaseModel] | str | None = None
) -> dict[str, Any]:
    """`openapi_extra` of a route whose JSON body is `model`, one of `DESCRIBED.bodies`.

    Args:
        streams: each server-sent event's data with `"stream": true`: one of `DESCRIBED.answers`, or
            what is to be said of data of many types.
    """
    extra = openapi.body_of(model)
    if streams is None:
        return extra
    about = streams
    if not isinstance(streams, str):
        last = f"at the end `[DONE]`, or an {ErrorResponse.__name__} in its place"
        about = f"a {streams.__name__} as JSON; {last}"
    data = {"type": "string", "description": about}
    event = {"type": "object", "required": ["data"], "properties": {"data": data}}
    extra["responses"] = {"200": {"content": {"text/event-stream": {"schema": event}}}}
    return extra
