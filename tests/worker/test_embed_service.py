"""Texts to the engine and back: pieces, pairs, cuts, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.errors import TriremeError
from protocol.generation import EmbedRequest, ScoreRequest
from tests.worker.model.encoders import PAIRS, TEXTS, tokenizer_of
from worker.admission import Admission
from worker.embed_service import EmbedService
from worker.engine.protocol import EngineInfo, Pair
from worker.handover import Handover
from worker.metrics import Metrics
from worker.runtime import Ready
from worker.sentence_files import SentenceFiles
from worker.text.prompt import TextModel
from worker.text.templates import choose_template
from worker.text.tokenizer import HFTokenizer

CLS, SEP = 2, 3
LONG = "abc def " * 100


@dataclass
class FakeEngine:
    """Remembers its inputs; a vector is what they were, so to speak."""

    inputs: list[list[int]] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    value: float = 0.5

    async def embed(self, inputs: list[list[int]], tenant: str = "") -> list[list[float]]:
        self.inputs += inputs
        self.tenants.append(tenant)
        return [[self.value, float(len(one))] for one in inputs]

    async def score(self, pairs: list[Pair], tenant: str = "") -> list[float]:
        self.pairs += pairs
        self.tenants.append(tenant)
        return [self.value for _ in pairs]


class FakeRuntime:
    """A model that is ready."""

    def __init__(self, engine: Any, *, scores: bool, embeds: bool, truncate: bool) -> None:
        text = TextModel(
            HFTokenizer(tokenizer_of("bert")),
            choose_template(None, None, None),
            sentence=SentenceFiles(prompt="q: "),
        )
        info = EngineInfo("encoder", 24, (), 330, 1, embeds=embeds, scores=scores, generates=False)
        admission = Admission(
            limit=None, capacity=1, max_queue_requests=8, max_queue_tokens=9999, clock=lambda: 0.0
        )
        self.settings = SimpleNamespace(embed_in_truncate=truncate)
        self.handover = Handover()
        self._ready = Ready(engine, info, text, admission)

    def require(self, *_fence: Any) -> Ready:
        return self._ready

    @contextmanager
    def request(self, _gateway: str) -> Iterator[None]:
        yield


def service(
    engine: FakeEngine, *, scores: bool = False, embeds: bool = True, truncate: bool = False
) -> EmbedService:
    runtime: Any = FakeRuntime(engine, scores=scores, embeds=embeds, truncate=truncate)
    return EmbedService(runtime, Metrics("m", runtime))


def embed(*inputs: Any) -> EmbedRequest:
    return EmbedRequest(request_id="r", model="m", inputs=list(inputs))


def score(queries: list[str], documents: list[str]) -> ScoreRequest:
    return ScoreRequest(request_id="r", model="m", queries=queries, documents=documents)


async def test_texts_get_prompt_and_special_tokens_and_ids_stay_as_they_are() -> None:
    engine = FakeEngine()
    answer = await service(engine).embed(embed("hi", [7, 8]))
    assert engine.inputs[0] == tokenizer_of("bert")("q: hi").input_ids
    assert engine.inputs[0][0] == CLS
    assert engine.inputs[0][-1] == SEP
    assert engine.inputs[1] == [7, 8]
    assert answer.prompt_tokens == sum(map(len, engine.inputs))


@pytest.mark.parametrize("truncate", [False, True])
async def test_long_texts_come_in_pieces_or_are_cut_as_transformers_cuts(truncate: bool) -> None:
    engine = FakeEngine()
    answer = await service(engine, truncate=truncate).embed(embed(LONG))
    expected = tokenizer_of("bert")("q: " + LONG, truncation=True, max_length=24).input_ids
    assert engine.inputs[0] == expected
    assert (len(engine.inputs) > 1) is not truncate
    assert all((one[0], one[-1]) == (CLS, SEP) for one in engine.inputs)
    assert answer.prompt_tokens == sum(map(len, engine.inputs))


async def test_the_engine_is_told_who_asks() -> None:
    engine = FakeEngine()
    for scores in (False, True):
        asked = service(engine, scores=scores)
        await asked.embed(embed("hi").model_copy(update={"tenant": f"{scores} a"}))
        await asked.score(score(["q"], ["d"]).model_copy(update={"tenant": f"{scores} b"}))
    assert engine.tenants == ["False a", "False b", "True a", "True b"]


async def test_pairs_are_those_of_the_tokenizer() -> None:
    engine = FakeEngine()
    queries, documents = (list(texts) for texts in zip(*PAIRS, strict=True))
    with pytest.raises(TriremeError):
        await service(engine, scores=True).score(score(queries, [*documents[:2], LONG]))
    answer = await service(engine, scores=True, truncate=True).score(score(queries, documents))
    assert answer.scores == [0.5] * 3
    tokenizer = tokenizer_of("bert")
    for pair, texts in zip(engine.pairs, PAIRS, strict=True):
        expected = tokenizer(*texts, truncation=True, max_length=24)
        assert pair.ids == expected.input_ids
        assert pair.first == expected.token_type_ids.index(1)
    assert answer.prompt_tokens == sum(map(len, engine.pairs))


@pytest.mark.parametrize("query", ["who", "abc def " * 10, LONG * 20])
async def test_long_pairs_are_cut_as_transformers_cuts_them(query: str) -> None:
    engine = FakeEngine()
    documents = ["abc def " * 6, "a short one", "abc def " * 9]
    await service(engine, scores=True, truncate=True).score(score([query], documents))
    tokenizer = tokenizer_of("bert")
    for pair, document in zip(engine.pairs, documents, strict=True):
        assert pair.ids == tokenizer(query, document, truncation=True, max_length=24).input_ids


async def test_a_long_pair_is_named_where_nothing_is_cut() -> None:
    with pytest.raises(TriremeError) as caught:
        await service(FakeEngine(), scores=True).score(score(["who"], ["a", LONG]))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "documents[1]")


async def test_an_embedding_model_embeds_one_query_once() -> None:
    engine = FakeEngine()
    documents = [TEXTS[0], TEXTS[1], TEXTS[4]]
    answer = await service(engine).score(score(["who"], documents))
    assert len(engine.inputs) == 1 + len(documents)
    lengths = [len(one) for one in engine.inputs]

    def cosine(a: int, b: int) -> float:
        return (0.25 + a * b) / math.hypot(0.5, a) / math.hypot(0.5, b)

    assert answer.scores == pytest.approx([cosine(lengths[0], one) for one in lengths[1:]])


async def test_an_id_outside_the_vocabulary_names_its_input() -> None:
    with pytest.raises(TriremeError) as caught:
        await service(FakeEngine()).embed(embed("a", [5, 330]))
    assert (caught.value.code, caught.value.param) == ("invalid_value", "input[1]")


@pytest.mark.parametrize("value", [math.nan, math.inf])
async def test_numbers_that_are_not_finite_are_a_fault(value: float) -> None:
    with pytest.raises(TriremeError, match="not finite"):
        await service(FakeEngine(value=value)).embed(embed("a"))
    with pytest.raises(TriremeError, match="not finite"):
        await service(FakeEngine(value=value), scores=True).score(score(["a"], ["b"]))


async def test_what_a_model_does_not_do_is_refused() -> None:
    neither = service(FakeEngine(), embeds=False)
    for call in (neither.embed(embed("a")), neither.score(score(["a"], ["b"]))):
        with pytest.raises(TriremeError) as caught:
            await call
        assert (caught.value.code, caught.value.param) == ("unsupported_by_model", "model")
