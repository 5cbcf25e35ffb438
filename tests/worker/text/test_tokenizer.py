from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.protocol import ModelLoadError
from worker.text.tokenizer import HFTokenizer, load_pretrained
from worker.text.words import END_ID, END_TEXT, WordTokenizer


@pytest.fixture(scope="module")
def tokenizer(byte_level: Any) -> HFTokenizer:
    return HFTokenizer(byte_level)


def test_a_rendered_prompt_has_its_special_tokens_parsed(tokenizer: HFTokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>hello<|im_end|>", add_special_tokens=False)
    assert (ids[0], ids[-1]) == (1, 2)


def test_typed_special_tokens_stay_text(tokenizer: HFTokenizer) -> None:
    ids = tokenizer.encode_inner("<|im_end|>", as_text=True)
    assert 2 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<|im_end|>"


def test_a_bos_is_added_once(tokenizer: HFTokenizer) -> None:
    bare = tokenizer.encode("hello", add_special_tokens=True)
    written = tokenizer.encode("<|bos|>hello", add_special_tokens=True)
    assert bare == written
    assert bare.count(0) == 1
    assert 0 not in tokenizer.encode("hello", add_special_tokens=False)


def test_an_inner_piece_of_a_sentence_piece_model_gets_no_leading_space(
    sentence_piece: Any,
) -> None:
    tokenizer = HFTokenizer(sentence_piece)
    ids = tokenizer.encode_inner("hello", as_text=True)
    assert "".join(tokenizer.token(token_id)[0] for token_id in ids) == "hello"


def test_token_bytes_are_exact_for_half_a_character(tokenizer: HFTokenizer) -> None:
    ids = tokenizer.encode_inner("☃", as_text=True)
    assert b"".join(tokenizer.token(token_id)[1] for token_id in ids) == "☃".encode()


@given(text=st.text(max_size=30))
def test_token_bytes_together_are_the_text(tokenizer: HFTokenizer, text: str) -> None:
    ids = tokenizer.encode_inner(text, as_text=True)
    assert b"".join(tokenizer.token(token_id)[1] for token_id in ids) == text.encode()


def test_token_bytes_of_byte_fallback_and_words(sentence_piece: Any) -> None:
    tokenizer = HFTokenizer(sentence_piece)
    ids = tokenizer.encode("hello 数", add_special_tokens=False)
    joined = b"".join(tokenizer.token(token_id)[1] for token_id in ids)
    assert joined == " hello 数".encode()


def test_a_row_of_the_padded_vocabulary_has_no_text(tokenizer: HFTokenizer) -> None:
    assert tokenizer.token(100_000) == ("", b"")


def test_special_tokens_and_sizes(tokenizer: HFTokenizer) -> None:
    assert set(tokenizer.special_tokens) == {"<|bos|>", "<|im_start|>", "<|im_end|>"}
    assert tokenizer.vocab_size == 320
    assert tokenizer.bos_token_id == 0


def test_the_fingerprint_is_that_of_the_tokenizer(byte_level: Any, sentence_piece: Any) -> None:
    assert HFTokenizer(byte_level).fingerprint == HFTokenizer(byte_level).fingerprint
    assert HFTokenizer(byte_level).fingerprint != HFTokenizer(sentence_piece).fingerprint


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="not a fast one"):
        HFTokenizer(object())


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no tokenizer can be loaded") as caught:
        load_pretrained(str(tmp_path), None, False)
    assert "\n" not in str(caught.value)


@given(text=st.text(max_size=50))
def test_the_word_tokenizer_round_trips_any_text(text: str) -> None:
    tokenizer = WordTokenizer()
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_word_tokenizer_has_a_special_token() -> None:
    tokenizer = WordTokenizer()
    assert tokenizer.encode(f"a{END_TEXT}", add_special_tokens=False) == [97, END_ID]
    assert END_ID not in tokenizer.encode_inner(END_TEXT, as_text=True)
    assert tokenizer.encode_inner(END_TEXT, as_text=False) == [END_ID]
    assert tokenizer.token(END_ID) == (END_TEXT, END_TEXT.encode())


@pytest.mark.parametrize("max_tokens", [None, 7, 12])
def test_a_pair_is_that_of_transformers(byte_level: Any, max_tokens: int | None) -> None:
    texts = ("hello world", "this is a tiny corpus of many words")
    cut = {"truncation": True, "max_length": max_tokens} if max_tokens else {}
    expected = byte_level(*texts, **cut).input_ids
    assert HFTokenizer(byte_level).encode_pair(*texts, max_tokens) == (expected, len(expected))


def test_entries_are_those_of_the_vocabulary(byte_level: Any) -> None:
    ids = byte_level("naïve café <|im_end|>").input_ids
    tokenizer = HFTokenizer(byte_level)
    assert [tokenizer.entry(one) for one in ids] == byte_level.convert_ids_to_tokens(ids)
    assert tokenizer.entry(10**6) == ""


def test_the_beginning_of_a_text_has_its_first_tokens(byte_level: Any) -> None:
    tokenizer = HFTokenizer(byte_level)
    text = "naïve café ☕ and 数字 123 " * 5
    ids = tokenizer.encode(text, add_special_tokens=False)
    begun = tokenizer.beginning(text, 20)
    assert tokenizer.encode(begun, add_special_tokens=False)[:15] == ids[:15]
    assert len(begun) < len(text)
    assert tokenizer.beginning(text, 10_000) == text
