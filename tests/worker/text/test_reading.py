"""Forced calls are read from a text however it is cut."""

from __future__ import annotations

import random

from protocol.generation import CallPiece
from worker.text.reading import ForcedCalls

TEXT = 'first\n{"a":"x\\ny"}\nsecond\n{}'


def folded(pieces: list[CallPiece]) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        if piece.name is not None:
            assert piece.index == len(calls)
            calls.append((piece.name, ""))
        else:
            assert piece.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.arguments)
    return calls


def test_any_cut_gives_the_same_calls() -> None:
    whole = [("first", '{"a":"x\\ny"}'), ("second", "{}")]
    assert folded(ForcedCalls().feed(TEXT).calls) == whole
    rng = random.Random(0)
    for _ in range(200):
        cuts = sorted(rng.randint(0, len(TEXT)) for _ in range(rng.randint(1, 8)))
        reader, pieces = ForcedCalls(), []
        for start, end in zip([0, *cuts], [*cuts, len(TEXT)], strict=True):
            pieces += reader.feed(TEXT[start:end]).calls
        assert folded(pieces) == whole


def test_a_name_that_is_not_whole_yet_is_no_call() -> None:
    reader = ForcedCalls()
    assert reader.feed("fir").calls == []
    assert reader.feed("st\n").calls == [CallPiece(0, "first", "")]
    assert reader.feed("").calls == []
