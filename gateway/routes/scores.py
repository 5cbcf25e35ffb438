"""POST /v1/score and POST /v1/rerank, with the other paths that vLLM, Jina and Cohere give them."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from gateway.metering import metered
from gateway.openapi import body_of
from gateway.state import admit, arrival_of, gateway_of, read
from protocol.errors import TriremeError
from protocol.generation import ScoreRequest, ScoreResponse
from protocol.openai_responses import (
    RankedDocument,
    RankedText,
    RerankResponse,
    ScoreObject,
    ScoringResponse,
    UsageInfo,
)
from protocol.texts import RerankRequest, ScoringRequest
from trireme.service.ids import short_id
from trireme.service.streaming import Leash

router = APIRouter(tags=["scores"])


@router.post("/score", response_model=ScoringResponse, openapi_extra=body_of(ScoringRequest))
@router.post("/v1/score", response_model=ScoringResponse, openapi_extra=body_of(ScoringRequest))
async def score(request: Request) -> Response:
    """How near two texts are, for each pair."""
    asked = await read(request, ScoringRequest)
    queries, documents = asked.pairs
    found = await _scores(request, asked.model, queries, documents, asked.names)
    answer = ScoringResponse(
        id=f"score-{short_id()}",
        object="list",
        created=int(time.time()),
        model=asked.model,
        data=[
            ScoreObject(index=index, object="score", score=value)
            for index, value in enumerate(found.scores)
        ],
        usage=_usage(found),
    )
    return Response(answer.to_json(), media_type="application/json")


@router.post("/rerank", response_model=RerankResponse, openapi_extra=body_of(RerankRequest))
@router.post("/v1/rerank", response_model=RerankResponse, openapi_extra=body_of(RerankRequest))
@router.post("/v2/rerank", response_model=RerankResponse, openapi_extra=body_of(RerankRequest))
async def rerank(request: Request) -> Response:
    """Documents by what they have to do with a query, the nearest first."""
    asked = await read(request, RerankRequest)
    texts = [document.text for document in asked.documents]
    found = await _scores(request, asked.model, [asked.query], texts, ("query", "documents"))
    order = sorted(range(len(texts)), key=lambda index: -found.scores[index])
    results = []
    for index in order[: asked.top_n or None]:
        ranked: dict[str, Any] = {"index": index, "relevance_score": found.scores[index]}
        if asked.return_documents:
            ranked["document"] = RankedText(text=texts[index])
        results.append(RankedDocument(**ranked))
    answer = RerankResponse(
        id=f"rerank-{short_id()}", model=asked.model, usage=_usage(found), results=results
    )
    return Response(answer.to_json(), media_type="application/json")


async def _scores(
    request: Request, model: str, queries: list[str], documents: list[str], names: tuple[str, str]
) -> ScoreResponse:
    """One score a document.

    Args:
        names: what the request calls queries and documents, for errors.
    """
    arrival = arrival_of(request)
    admit(request, model)
    wanted = ScoreRequest(
        request_id=arrival.request_id,
        model=model,
        queries=queries,
        documents=documents,
        tenant=arrival.tenant,
    )
    tokens = sum(1 + len(text) // 4 for text in (*queries, *documents))
    gateway = gateway_of(request)
    try:
        with metered(gateway, arrival, model, tokens) as usage:
            async with Leash(request.scope):
                found = await gateway.dispatcher.ask(
                    wanted,
                    ScoreResponse,
                    arrival.deadline_s,
                    arrival.trail,
                    tokens=tokens,
                    capability="score",
                )
            usage.tokens = found.prompt_tokens
            return found
    except TriremeError as error:
        error.param = _renamed(error.param, names)
        raise


def _renamed(param: str | None, names: tuple[str, str]) -> str | None:
    """A field of the wire as the client calls it."""
    field, bracket, place = (param or "").partition("[")
    if field == "queries":
        return names[0] if names[0] == "query" else names[0] + bracket + place
    return names[1] + bracket + place if field == "documents" else param


def _usage(found: ScoreResponse) -> UsageInfo:
    return UsageInfo(prompt_tokens=found.prompt_tokens, total_tokens=found.prompt_tokens)
