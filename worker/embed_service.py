"""Embeddings and scores: texts in, vectors or numbers out. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

from protocol.errors import TriremeError
from protocol.generation import EmbedRequest, EmbedResponse, ScoreRequest, ScoreResponse
from worker.embedding import check_finite, cosine, finished, to_base64, windows
from worker.engine.protocol import Pair
from worker.metrics import Metrics
from worker.runtime import Ready, Runtime

_Item = TypeVar("_Item")
_Pieces: TypeAlias = list[list[list[int]]]
"""Token ids, in pieces that fit into the context, of each input."""


class EmbedService:
    """Answers requests with the runtime's model."""

    def __init__(self, runtime: Runtime, metrics: Metrics) -> None:
        self._runtime = runtime
        self._metrics = metrics

    async def embed(self, request: EmbedRequest, *, resumable: bool = True) -> EmbedResponse:
        """L2-normalised vectors; a long input is the mean of its pieces, weighted by tokens.

        Args:
            resumable: the caller can ask another worker when this one drains.

        Raises:
            TriremeError: `unsupported_by_model`; `invalid_value` for an empty input or for more
                dimensions than the model has; or as `Runtime.require` and `Admission.enter`.
        """
        ready = self._runtime.require(request.model, request.instance_id, request.digest)
        if not ready.info.embeds:
            message = f"The model `{request.model}` gives no embeddings."
            raise TriremeError("unsupported_by_model", message, param="model")
        with self._runtime.request(request.gateway):
            names = [f"input[{at}]" for at in range(len(request.inputs))]
            with self._runtime.handover.request(resumable=resumable) as wait, wait:
                pieces = await asyncio.to_thread(self._pieces, ready, request.inputs, names)
                vectors = await self._vectors(ready, pieces, request.dimensions, request.tenant)
        return EmbedResponse(
            embeddings_b64=[to_base64(vector) for vector in vectors],
            dimensions=len(vectors[0]),
            prompt_tokens=_count(pieces),
        )

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """What a cross-encoder says of each pair, or the cosine of its two embeddings.

        Raises:
            TriremeError: `unsupported_by_model`, `context_length_exceeded` for a pair that does
                not fit; or as `embed`.
        """
        ready = self._runtime.require(request.model, request.instance_id, request.digest)
        handover = self._runtime.handover
        with self._runtime.request(request.gateway), handover.request(resumable=True) as wait, wait:
            if ready.info.scores:
                return await self._cross_encoded(ready, request)
            if ready.info.embeds:
                return await self._compared(ready, request)
        message = f"The model `{request.model}` scores no texts."
        raise TriremeError("unsupported_by_model", message, param="model")

    async def _compared(self, ready: Ready, request: ScoreRequest) -> ScoreResponse:
        names = [
            f"{name}[{at}]"
            for name, texts in (("queries", request.queries), ("documents", request.documents))
            for at in range(len(texts))
        ]
        texts = [*request.queries, *request.documents]
        pieces = await asyncio.to_thread(self._pieces, ready, texts, names)
        vectors = await self._vectors(ready, pieces, None, request.tenant)
        documents = vectors[len(request.queries) :]
        queries = _each(vectors[: len(request.queries)], len(documents))

        def scores() -> list[float]:
            return list(map(cosine, queries, documents))

        return ScoreResponse(scores=await asyncio.to_thread(scores), prompt_tokens=_count(pieces))

    async def _cross_encoded(self, ready: Ready, request: ScoreRequest) -> ScoreResponse:
        def encoded() -> list[Pair]:
            queries = self._queries(ready, request)
            both = zip(queries, request.documents, strict=True)
            return [self._pair(ready, at, *texts) for at, texts in enumerate(both)]

        pairs = await asyncio.to_thread(encoded)
        num_tokens = sum(map(len, pairs))
        with ready.admission.enter(num_tokens, tenant=request.tenant) as ticket:
            await ticket.wait_turn()
            scores = await ready.engine.score(pairs, request.tenant)
        check_finite(scores)
        self._metrics.prompt_tokens.inc(num_tokens)
        return ScoreResponse(scores=scores, prompt_tokens=num_tokens)

    def _queries(self, ready: Ready, request: ScoreRequest) -> list[str]:
        """One a document."""
        queries, count = request.queries, len(request.documents)
        if self._runtime.settings.embed_in_truncate and len(queries) < count:
            # a huge one would be read anew for each document; of what is cut off only the length
            # could matter: it decides which text keeps the odd token where both are far too long
            enough = 4 * ready.info.context_length
            queries = [ready.text.tokenizer.beginning(queries[0], enough)]
        return _each(queries, count)

    def _pair(self, ready: Ready, at: int, query: str, document: str) -> Pair:
        context = ready.info.context_length
        cut = context if self._runtime.settings.embed_in_truncate else None
        ids, first = ready.text.tokenizer.encode_pair(query, document, cut)
        if not ids:
            message = "Both texts are empty, and this model has no special tokens."
            raise TriremeError("invalid_value", message, param=f"documents[{at}]")
        if len(ids) > context:
            message = (
                f"This model's maximum context length is {context} tokens. However, the query and "
                f"document {at} resulted in {len(ids)} tokens."
            )
            raise TriremeError("context_length_exceeded", message, param=f"documents[{at}]")
        return Pair(ids, first)

    async def _vectors(
        self, ready: Ready, pieces: _Pieces, dimensions: int | None, tenant: str
    ) -> list[list[float]]:
        """One vector of length 1 an input."""
        num_tokens = _count(pieces)
        with ready.admission.enter(num_tokens, tenant=tenant) as ticket:
            await ticket.wait_turn()
            inputs = [one for many in pieces for one in many]
            vectors = await ready.engine.embed(inputs, tenant)
        self._metrics.prompt_tokens.inc(num_tokens)
        return await asyncio.to_thread(finished, pieces, vectors, dimensions)

    def _pieces(
        self, ready: Ready, inputs: Sequence[str | list[int]], names: Sequence[str]
    ) -> _Pieces:
        """Each input's tokens, of a text with the special ones; `names` are for errors."""
        found = []
        for given, name in zip(inputs, names, strict=True):
            try:
                found.append(self._input_pieces(ready, given))
            except TriremeError as error:
                raise TriremeError(error.code, error.message, param=name) from error
        return found

    def _input_pieces(self, ready: Ready, given: str | list[int]) -> list[list[int]]:
        text, size = ready.text, ready.info.context_length
        if isinstance(given, list):
            whole = inner = text.encode_ids(given, ready.info.vocab_size).ids
        else:
            prepared = text.sentence.prepared(given)
            whole = text.encode_prompt(prepared).ids
            inner = whole
            if len(whole) > size:
                inner = text.tokenizer.encode(prepared, add_special_tokens=False)
        pieces = windows(whole, inner, size)
        return pieces[:1] if self._runtime.settings.embed_in_truncate else pieces


def _each(items: list[_Item], count: int) -> list[_Item]:
    """One item for all, or one for each."""
    return items * count if len(items) == 1 else items


def _count(pieces: _Pieces) -> int:
    return sum(len(piece) for many in pieces for piece in many)
