"""Fill-in-the-middle prompts of each family, over tiny tokenizers that have its tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers import AddedToken

from protocol import conversation
from protocol.errors import TriremeError
from worker.text.fim import FAMILIES, Family, gap
from worker.text.prompt import TextModel
from worker.text.templates import NamedTemplate
from worker.text.tokenizer import HFTokenizer
from worker.text.words import WordTokenizer

BOS = 0


def tokenizer_with(pretrained: Any, family: Family, *, special: bool = True) -> HFTokenizer:
    """A tokenizer with the family's tokens; not all models call theirs special."""
    made = copy.deepcopy(pretrained)
    texts = (*family.controls, *family.ends)
    made.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])
    return HFTokenizer(made)


def shown(tokenizer: HFTokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token(one)[0] for one in ids]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.prefix)
@pytest.mark.parametrize("special", [True, False])
def test_each_family_has_its_order(byte_level: Any, family: Family, special: bool) -> None:
    tokenizer = tokenizer_with(byte_level, family, special=special)
    found = gap(tokenizer, "hello", " world", add_special_tokens=True)
    assert found is not None
    before = [family.prefix, *shown(tokenizer, tokenizer.encode_inner("hello", as_text=True))]
    behind = [family.suffix, *shown(tokenizer, tokenizer.encode_inner(" world", as_text=True))]
    order = [*behind, *before] if family.suffix_first else [*before, *behind]
    assert shown(tokenizer, found.ids) == ["<|bos|>", *order, *filter(None, [family.middle])]
    assert shown(tokenizer, list(found.ends)) == [*family.controls, *family.ends]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.prefix)
@pytest.mark.parametrize("special", [True, False])
def test_control_tokens_typed_in_the_texts_are_text(
    byte_level: Any, family: Family, special: bool
) -> None:
    tokenizer = tokenizer_with(byte_level, family, special=special)
    typed = "".join((*family.controls, *family.ends, "<|im_end|>", "x", *family.controls))
    found = gap(tokenizer, typed, typed, add_special_tokens=False)
    assert found is not None
    controls = {tokenizer.token_id(text) for text in (*family.controls, *family.ends)}
    assert [one for one in found.ids if one in controls] == [
        tokenizer.token_id(text)
        for text in (
            [family.suffix, family.prefix]
            if family.suffix_first
            else [family.prefix, family.suffix, family.middle]
        )
    ]
    assert tokenizer.token_id("<|im_end|>") not in found.ids
    assert tokenizer.decode(found.ids, skip_special_tokens=False).count(typed) == 2


def test_a_sentence_piece_prefix_begins_a_text_and_a_suffix_does_not(sentence_piece: Any) -> None:
    """As Code Llama and Codestral were trained: `[SUFFIX]suffix[PREFIX] prefix`."""
    tokenizer = tokenizer_with(sentence_piece, FAMILIES[-1])
    found = gap(tokenizer, "user", "system", add_special_tokens=False)
    assert found is not None
    at = found.ids.index(tokenizer.token_id("[PREFIX]") or -1)
    assert found.ids[1:at] == tokenizer.encode_inner("system", as_text=True)
    assert found.ids[at + 1 :] == tokenizer.encode("user", add_special_tokens=False)
    assert found.ids[at + 1 :] != tokenizer.encode_inner("user", as_text=True)


def test_ids_are_the_prefix_and_their_start_token_stays_in_front(byte_level: Any) -> None:
    tokenizer = tokenizer_with(byte_level, FAMILIES[0])
    text = tokenizer.encode("hello", add_special_tokens=False)
    with_start = gap(tokenizer, [BOS, *text], "x", add_special_tokens=True)
    assert with_start == gap(tokenizer, "hello", "x", add_special_tokens=True)
    bare = gap(tokenizer, text, "x", add_special_tokens=True)
    assert bare == gap(tokenizer, "hello", "x", add_special_tokens=False)


def test_empty_texts_leave_their_places_empty(byte_level: Any) -> None:
    tokenizer = tokenizer_with(byte_level, FAMILIES[1])
    found = gap(tokenizer, "", "", add_special_tokens=False)
    assert found is not None
    assert shown(tokenizer, found.ids) == ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]


def test_a_model_without_such_tokens_refuses_a_suffix() -> None:
    model = TextModel(WordTokenizer(), NamedTemplate(conversation.plain()))
    with pytest.raises(TriremeError) as caught:
        model.encode_gap("a", "b")
    assert (caught.value.code, caught.value.param) == ("unsupported_by_model", "suffix")


@pytest.mark.parametrize(
    ("prefix", "suffix", "at"), [("\ud800", "", "prompt"), ("", "\ud800", "suffix")]
)
def test_a_lone_surrogate_is_named(byte_level: Any, prefix: str, suffix: str, at: str) -> None:
    model = TextModel(tokenizer_with(byte_level, FAMILIES[0]), NamedTemplate(conversation.plain()))
    with pytest.raises(TriremeError) as caught:
        model.encode_gap(prefix, suffix)
    assert caught.value.param == at


def test_the_prompt_carries_its_ends(byte_level: Any) -> None:
    tokenizer = tokenizer_with(byte_level, FAMILIES[3])
    model = TextModel(tokenizer, NamedTemplate(conversation.plain()))
    encoded = model.encode_gap("a", "b")
    assert tokenizer.token_id("▁<EOT>") in encoded.ends
    assert encoded.param == "prompt"
    assert encoded.context == tuple(encoded.ids[-6:])
