"""Grammars from what an answer must be, and texts held to them token by token."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from protocol.errors import TriremeError
from protocol.generation import Structure
from worker.demo import demo_model_path
from worker.engine.grammar import Grammars, Matcher
from worker.text.structure import MAX_CHARS, Structures
from worker.text.tokenizer import HFTokenizer, load_pretrained

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 4}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> HFTokenizer:
    return HFTokenizer(load_pretrained(str(demo_model_path()), None, False))


@pytest.fixture(scope="module")
def eos(tokenizer: HFTokenizer) -> int:
    [found] = {
        token
        for text in tokenizer.special_tokens
        for token in tokenizer.encode(text, add_special_tokens=False)
        if "end" in text and "im" not in text
    } or {0}
    return found


@pytest.fixture(scope="module")
def structures(tokenizer: HFTokenizer, eos: int) -> Structures:
    return Structures(tokenizer, tokenizer.vocab_size, [eos])


@pytest.fixture(scope="module")
def grammars(tokenizer: HFTokenizer, eos: int) -> Grammars:
    return Grammars(tokenizer.described, tokenizer.vocab_size + 5, [eos])


def write(matcher: Matcher, rng: random.Random, *, fast: bool) -> list[int]:
    """Random tokens among those allowed, to the end of the grammar."""
    ids: list[int] = []
    for _ in range(2000):
        if matcher.is_over:
            return ids
        allowed = matcher.allowed()
        assert allowed is not None
        token = int(rng.choice(np.flatnonzero(allowed)))
        if matcher.ends(token):
            return ids
        ids += [token, *matcher.take(token, fast=fast)]
        assert not matcher.error
    raise AssertionError("no end")


@pytest.mark.parametrize("fast", [False, True])
def test_any_walk_through_a_schema_is_valid_and_compact(
    structures: Structures, grammars: Grammars, tokenizer: HFTokenizer, fast: bool
) -> None:
    start = grammars.begin(structures.grammar(Structure(kind="json_schema", value=SCHEMA)))
    rng = random.Random(0)
    for _ in range(30):
        text = tokenizer.decode(write(start.behind(()), rng, fast=fast), skip_special_tokens=False)
        found = json.loads(text)
        assert list(found) == ["a", "b"]
        assert isinstance(found["a"], int)
        assert text == json.dumps(found, separators=(",", ":"), ensure_ascii="\\u" in text) or (
            "\\" in text
        )


def test_forced_tokens_come_without_being_chosen(
    structures: Structures, grammars: Grammars, tokenizer: HFTokenizer
) -> None:
    one = Structure(kind="choice", value=["the only answer there is"])
    start = grammars.begin(structures.grammar(one))
    slow = write(start.behind(()), random.Random(1), fast=False)
    allowed = start.allowed()
    assert allowed is not None
    first = slow[0]
    forced = start.take(first, fast=True)
    assert tokenizer.decode([first, *forced], skip_special_tokens=False) == one.value[0]
    assert start.is_over


def test_columns_behind_the_vocabulary_are_never_allowed(
    structures: Structures, grammars: Grammars, tokenizer: HFTokenizer
) -> None:
    matcher = grammars.begin(structures.grammar(Structure(kind="regex", value="(?s:.){3}")))
    allowed = matcher.allowed()
    assert allowed is not None
    assert allowed[: tokenizer.vocab_size].any()
    assert not allowed[tokenizer.vocab_size :].any()


def test_a_token_that_is_not_allowed_is_an_error_and_no_exception(
    structures: Structures, grammars: Grammars, tokenizer: HFTokenizer
) -> None:
    matcher = grammars.begin(structures.grammar(Structure(kind="choice", value=["yes"])))
    [wrong] = tokenizer.encode("z", add_special_tokens=False)[:1]
    assert matcher.take(wrong, fast=True) == []
    assert matcher.error
    assert matcher.allowed() is None
    assert not matcher.is_over


@pytest.mark.parametrize(
    ("structure", "code"),
    [
        (Structure(kind="json_schema", value={"type": "strnig"}), "invalid_json_schema"),
        (Structure(kind="json_schema", value={"not": {}}), "invalid_json_schema"),
        (Structure(kind="regex", value="(["), "invalid_grammar"),
        (Structure(kind="grammar", value="start: missing"), "invalid_grammar"),
        (Structure(kind="regex", value="a" * (MAX_CHARS + 1)), "invalid_grammar"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_grammar_is_told(
    structures: Structures, structure: Structure, code: str
) -> None:
    for _ in range(2):
        with pytest.raises(TriremeError) as caught:
            structures.grammar(structure)
        assert caught.value.code == code
        assert caught.value.param == "response_format"
        assert len(caught.value.message) < 500


def test_a_deep_schema_is_no_recursion(structures: Structures) -> None:
    deep: Any = {"type": "integer"}
    for _ in range(5000):
        deep = {"type": "array", "items": deep}
    with pytest.raises((TriremeError, RecursionError, ValueError)) as caught:
        structures.grammar(Structure(kind="json_schema", value=deep))
    assert isinstance(caught.value, TriremeError)
