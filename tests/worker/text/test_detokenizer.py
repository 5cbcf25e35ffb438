from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.text.tokenizer import HFTokenizer, TokenStream
from worker.text.words import WordTokenizer


def stream_all(stream: TokenStream, ids: list[int]) -> str:
    return "".join([stream.step(token_id) for token_id in ids]) + stream.finish()


@pytest.fixture(scope="module")
def tokenizer(byte_level: Any) -> HFTokenizer:
    return HFTokenizer(byte_level)


@given(ids=st.lists(st.integers(0, 319), max_size=40), skip=st.booleans())
def test_deltas_together_are_one_decode_of_all_ids(
    tokenizer: HFTokenizer, ids: list[int], skip: bool
) -> None:
    stream = tokenizer.stream(skip_special_tokens=skip)
    assert stream_all(stream, ids) == tokenizer.decode(ids, skip_special_tokens=skip)


@given(text=st.text(max_size=40))
def test_text_survives_encoding_and_streaming(tokenizer: HFTokenizer, text: str) -> None:
    ids = tokenizer.encode_inner(text, as_text=True)
    assert stream_all(tokenizer.stream(skip_special_tokens=True), ids) == text


def test_half_a_character_waits_for_its_rest(tokenizer: HFTokenizer) -> None:
    ids = tokenizer.encode_inner("☃", as_text=True)
    stream = tokenizer.stream(skip_special_tokens=True)
    *partial, last = [stream.step(token_id) for token_id in ids]
    assert len(ids) > 1
    assert (set(partial), last) == ({""}, "☃")


def test_half_a_character_at_the_end_shows_as_the_replacement_character(
    tokenizer: HFTokenizer,
) -> None:
    ids = tokenizer.encode_inner("☃", as_text=True)[:-1]
    stream = tokenizer.stream(skip_special_tokens=True)
    assert stream_all(stream, ids) == "\ufffd"


@given(text=st.text(max_size=30))
def test_byte_fallback_deltas_together_are_one_decode(sentence_piece: Any, text: str) -> None:
    tokenizer = HFTokenizer(sentence_piece)
    ids = tokenizer.encode(text, add_special_tokens=False)
    stream = tokenizer.stream(skip_special_tokens=True)
    assert stream_all(stream, ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_text_given_already_is_not_given_again_when_a_decoder_rewrites_it(
    sentence_piece: Any,
) -> None:
    tokenizer = HFTokenizer(sentence_piece)
    ids = [4, 132]  # a byte fallback decoder takes back the first byte because of the second
    assert tokenizer.decode(ids, skip_special_tokens=True) == "\ufffd\ufffd"
    assert stream_all(tokenizer.stream(skip_special_tokens=True), ids) == "\x00\ufffd"


def test_a_continued_text_keeps_the_space_of_its_first_word(sentence_piece: Any) -> None:
    tokenizer = HFTokenizer(sentence_piece)
    ids = tokenizer.encode("hello world", add_special_tokens=False)
    cut = next(i for i in range(1, len(ids)) if tokenizer.token(ids[i])[0].startswith(" "))
    fresh = tokenizer.stream(skip_special_tokens=True)
    continued = tokenizer.stream(skip_special_tokens=True, context=ids[:cut])
    assert stream_all(fresh, ids[cut:]) == "world"
    assert stream_all(continued, ids[cut:]) == " world"


@given(ids=st.lists(st.integers(0, WordTokenizer.vocab_size - 1), max_size=30), skip=st.booleans())
def test_the_word_tokenizer_streams_what_it_decodes(ids: list[int], skip: bool) -> None:
    tokenizer = WordTokenizer()
    stream = tokenizer.stream(skip_special_tokens=skip)
    assert stream_all(stream, ids) == tokenizer.decode(ids, skip_special_tokens=skip)
