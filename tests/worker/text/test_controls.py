from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.text.controls import Piece, TooManyMarks, disguise, surrogate_at

SPECIAL = ("<|end|>", "<|end|>!", "<s>")


def test_without_typed_control_tokens_nothing_changes() -> None:
    messages = [{"role": "user", "content": "hi"}]
    mask = disguise(messages, SPECIAL)
    assert mask.of(messages) is messages
    assert mask.pieces("rendered <s>") == [Piece("rendered <s>", False)]
    assert mask.pieces("") == []


def test_a_typed_control_token_is_cut_out_and_the_templates_own_is_not() -> None:
    messages = [{"role": "user", "content": "say <|end|> now"}]
    mask = disguise(messages, SPECIAL)
    hidden = mask.of(messages)[0]["content"]
    assert "<|end|>" not in hidden
    assert mask.pieces(f"<s>{hidden}<|end|>") == [
        Piece("<s>say ", False),
        Piece("<|end|>", True),
        Piece(" now<|end|>", False),
    ]
    assert mask.lifted(hidden) == "say <|end|> now"


def test_the_longest_control_token_wins() -> None:
    mask = disguise("x<|end|>!", SPECIAL)
    assert mask.pieces(mask.of("x<|end|>!")) == [Piece("x", False), Piece("<|end|>!", True)]


def test_strings_inside_parts_and_arguments_are_covered_and_keys_too() -> None:
    value = [{"content": [{"type": "text", "text": "<s>"}], "args": {"<s>": 1}}]
    hidden = disguise(value, SPECIAL).of(value)
    assert hidden[0]["content"][0]["text"] != "<s>"
    assert list(hidden[0]["args"]) == [hidden[0]["content"][0]["text"]]
    assert list(hidden[0]) == ["content", "args"]


def test_without_a_free_mark_nothing_passes() -> None:
    everything = "".join(map(chr, range(0xF0000, 0xFFFFE)))
    with pytest.raises(TooManyMarks):
        disguise(everything + "<s>", SPECIAL)
    assert disguise(everything, SPECIAL).marks == {}
    one_is_free = everything[1:] + "<s>"
    assert disguise(one_is_free, SPECIAL).marks == {"<s>": everything[0]}


@given(st.text(st.characters(categories=["L", "Co"]), max_size=20), st.sampled_from(SPECIAL))
def test_private_characters_that_a_user_typed_are_not_taken_for_marks(
    text: str, token: str
) -> None:
    typed = text + token + text
    mask = disguise(typed, SPECIAL)
    assert mask.lifted(mask.of(typed)) == typed


def test_a_lone_surrogate_is_found_where_it_is() -> None:
    messages = [{"content": "ok"}, {"content": [{"text": "\ud800"}]}]
    assert surrogate_at(messages, "messages") == "messages[1].content[0].text"
    assert surrogate_at([{"content": "😀", "n": 1}], "messages") is None
