"""Tokens: compared as digests, whatever characters they have."""

from __future__ import annotations

import pytest

from trireme.service.auth import TokenSet, bearer


@pytest.mark.parametrize("token", ["plain", "ünïcödé", "🔑", "a" * 10_000, "\udcff"])
def test_a_member_is_accepted_and_anything_else_is_not(token: str) -> None:
    tokens = TokenSet(["other", token])
    assert tokens
    assert tokens.accepts(token)
    assert not tokens.accepts(token + "x")
    assert not tokens.accepts("")
    assert not tokens.accepts(None)


def test_an_empty_set_accepts_everybody() -> None:
    assert not TokenSet([])
    assert not TokenSet([""])
    assert TokenSet([""]).accepts(None)


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
        (None, None),
    ],
)
def test_the_token_of_a_header(header: str | None, token: str | None) -> None:
    assert bearer(header) == token
