"""Where drafts come from, and how many are worth a step's time."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.drafts import MOST_DRAFTED, drafts
from worker.engine.lookup import LENGTHS, Lookup, Odds, continued
from worker.engine.protocol import Job, SequenceParams
from worker.engine.sequence import Sequence, sequences_of

TOKENS = st.integers(0, 3) | st.sampled_from([256, 65_536, 16_777_216, 2**31 - 1])


def sequence(tokens: list[int], max_tokens: int = 1000, **params: Any) -> Sequence:
    made = SequenceParams(max_tokens=max_tokens, **params)
    return sequences_of(Job("a", tokens, made), 0, 0.0)[0]


def period_by_hand(tokens: list[int]) -> tuple[int, int] | None:
    """Length and period of the last place where the longest end of `tokens` stands once more."""
    for length in LENGTHS:
        for period in range(1, len(tokens) - length + 1):
            at = len(tokens) - length - period
            if tokens[at : at + length] == tokens[-length:]:
                return length, period
    return None


@given(st.lists(TOKENS, max_size=40), st.integers(0, 40))
def test_the_last_place_is_found_however_a_text_has_grown(tokens: list[int], known: int) -> None:
    """Tokens are four bytes each, and bytes of two of them may look like a third."""
    lookup = Lookup()
    lookup.find(tokens[:known])
    found = lookup.find(tokens)
    assert (found and (found.length, found.period)) == period_by_hand(tokens)


@pytest.mark.parametrize(
    ("tokens", "period", "goes_on"),
    [
        ([1, 2, 3, 4, 9, 1, 2], 5, [3, 4, 9, 1, 2, 3]),
        ([7, 7, 7], 1, [7, 7, 7, 7, 7, 7]),
        ([1, 2, 1, 2], 2, [1, 2, 1, 2, 1, 2]),
    ],
)
def test_a_draft_goes_on_as_the_text_did(
    tokens: list[int], period: int, goes_on: list[int]
) -> None:
    assert continued(tokens, period, 6) == goes_on
    assert continued(tokens, period, 2) == goes_on[:2]


def test_a_place_too_far_back_is_not_looked_for() -> None:
    far = list(range(2**15 - 1))
    assert Lookup().find([*far, 0, 1]) is None
    assert Lookup().find([*far[:-1], 0, 1]) is not None


def test_a_text_of_one_token_is_looked_through_at_once() -> None:
    """Each place matches the bytes of four."""
    started_s = time.perf_counter()
    Lookup().find([0] * 1_000_000)
    Lookup().find([1, 0] * 500_000 + [3, 1, 0, 5, 1, 0])
    assert time.perf_counter() - started_s < 5


def test_odds_follow_what_was_right() -> None:
    odds = Odds()
    assert odds.value == 0.5
    odds.learn(4, 4)
    assert odds.value == 5 / 6
    for _ in range(50):
        odds.learn(8, 8)
    assert odds.value > 0.98
    for _ in range(50):
        odds.learn(4, 0)  # what stood behind the first wrong one tells nothing
    assert 0.11 < odds.value < 0.12
    for _ in range(100):
        odds.pass_by()
    assert odds.value > 0.3  # tried again


def test_the_odds_of_short_and_long_finds_are_their_own() -> None:
    lookup = Lookup()
    short, long = [5, 6, 1, 5, 6], [1, 2, 3, 4, 9, 1, 2, 3, 4]
    assert (found := lookup.find(short)) is not None
    lookup.learn(3, 0)
    assert (again := lookup.find(short)) is not None
    assert again.odds < found.odds == 0.5
    assert (other := lookup.find([*short, *long])) is not None
    assert (other.length, other.odds) == (4, 0.5)


def test_a_lone_sequence_drafts_while_a_token_is_cheaper_than_a_step() -> None:
    """With odds of a half each draft must be worth its time: 2^-n (9 + n tokens) over what the
    step gives without it."""
    seq = sequence([1, 2, 3, 4, 5, 1, 2])
    assert drafts([seq], 8.0) == {id(seq): [3, 4]}
    assert drafts([seq], 1000.0) == {id(seq): [3, 4, 5, 1, 2, 3, 4, 5]}
    assert drafts([seq], 0.5) == {}
    assert drafts([seq, *(sequence([n]) for n in range(30))], 8.0) == {}
    assert drafts([], 8.0) == {}


def test_what_is_likelier_is_drafted_first() -> None:
    seqs = [sequence([1, 2, 3, 1, 2]) for _ in range(8)]
    drafts(seqs, 8.0)
    for number, seq in enumerate(seqs):
        assert seq.lookup is not None
        for _ in range(20):
            seq.lookup.learn(4, 4 if number == 3 else 0)
    found = drafts(seqs, 8.0)
    assert list(found) == [id(seqs[3])]
    assert len(found[id(seqs[3])]) > 4


@pytest.mark.parametrize("left", range(4))
def test_no_draft_goes_beyond_the_last_token(left: int) -> None:
    seq = sequence([1, 2] * 9, max_tokens=left)
    assert [len(draft) for draft in drafts([seq], 1e9).values()] == [left - 1] * (left > 1)


def test_drafts_are_bounded() -> None:
    seq = sequence([1, 2] * 9)
    assert [len(draft) for draft in drafts([seq], 1e9).values()] == [MOST_DRAFTED]


@given(st.integers(0, 2**32), st.floats(0, 1e6))
def test_drafts_pay_by_what_is_expected(seed: int, step_tokens: float) -> None:
    """More tokens are expected for each token's time with them than without."""
    rng = random.Random(seed)
    seqs = [
        sequence([rng.randrange(3) for _ in range(rng.randint(1, 30))])
        for _ in range(rng.randint(1, 40))
    ]
    found = drafts(seqs, step_tokens)
    expected = float(len(seqs))
    for seq in seqs:
        assert seq.lookup is not None
        expected += sum(0.5 ** (1 + n) for n in range(len(found.get(id(seq), ()))))
    num = sum(map(len, found.values()))
    assert expected * (step_tokens + len(seqs)) >= len(seqs) * (step_tokens + len(seqs) + num)


def test_beams_and_grammars_do_not_run_ahead() -> None:
    held = sequence([1, 2, 1, 2])
    held.matcher = object()  # type: ignore[assignment]
    assert drafts([held, sequence([1, 2, 1, 2], beam_width=2)], 1e9) == {}
