"""Where drafts come from, and how many are worth a step's time."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.drafts import MOST_DRAFTED, drafts
from worker.engine.lookup import LENGTHS, Found, Lookup, Odds, continued
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


def test_a_long_text_of_few_tokens_is_looked_through() -> None:
    """Each place of the first matches the bytes of four."""
    assert Lookup().find([0] * 1_000_000) == Found(4, 1, 1 / 3)
    text = [1, 0] * 500_000 + [3, 1, 0, 5, 1, 0]
    assert Lookup().find(text) == Found(2, 3, 1 / 3)


def test_odds_follow_what_was_right() -> None:
    odds = Odds()
    assert odds.value == 1 / 3
    odds.learn(4, 4)
    assert odds.value == 5 / 7
    for _ in range(50):
        odds.learn(8, 8)
    assert odds.value > 0.98
    for _ in range(100):
        odds.learn(0, 1)
    assert 0.07 < odds.value < 0.08


def test_a_text_teaches_its_own_odds() -> None:
    """Drafted or not: each new token is compared with the one foretold."""
    lookup, text = Lookup(), [1, 2, 1]
    assert lookup.find(text) is None
    for number in range(1, 30):
        text.append(text[-2])
        found = lookup.find(text)
        assert found is not None
        assert (found.odds > 1 / 3) == (number > 3)  # two, then three last tokens, then four
    assert found.odds > 0.85
    for token in range(100, 160):
        text += [token, 1, 2, 1, 2]  # foretold another token each time
        found = lookup.find(text)
    assert found is not None
    assert found.odds < 0.2


def test_only_the_tokens_up_to_the_first_wrong_one_teach() -> None:
    """What was foretold behind it goes on from what never came."""
    lookup = Lookup()
    lookup.find([1, 2, 3, 4, 5, 9, 1, 2])
    lookup.find([1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 7, 9, 1, 2])
    assert lookup._odds[2].value == 3 / 6
    assert [lookup._odds[length].value for length in (3, 4)] == [1 / 3, 1 / 3]


def test_the_odds_of_short_and_long_finds_are_their_own() -> None:
    lookup = Lookup()
    text = [1, 2, 3, 4, 9, 1, 2]
    assert lookup.find(text) is not None
    text += [8, 1, 2]  # not a 3
    assert (found := lookup.find(text)) is not None
    assert (found.length, found.odds) == (2, 1 / 4)
    text += [3, 4, 9, 1, 2, 3, 4]
    assert (found := lookup.find(text)) is not None
    assert (found.length, found.odds) == (4, 1 / 3)


def test_what_was_found_before_is_no_find_of_now() -> None:
    lookup = Lookup()
    assert lookup.find([1, 2, 1, 2]) is not None
    assert lookup.find([1, 2, 1, 2, 3]) is None
    assert lookup.find([1, 2, 1, 2, 3, 4]) is None
    assert [odds.value for odds in lookup._odds.values()] == [1 / 3, 1 / 3, 1 / 4]


def test_bytes_that_are_no_token_are_passed() -> None:
    """Nine zero bytes are two tokens at their beginning, not one byte behind it."""
    found = Lookup().find([0, 0, 256, 5, 0, 0])
    assert found is not None
    assert (found.length, found.period) == (2, 4)
    assert Lookup().find([1] * 29998 + [256, 256]) is None  # after a few


def test_a_lone_sequence_drafts_while_a_token_is_cheaper_than_a_step() -> None:
    """With odds of a third: 3^-n times the time of 8 + n tokens must be 1.25 times what the step
    gives without the n-th."""
    seq = sequence([1, 2, 3, 4, 5, 1, 2])
    assert drafts([seq], 8.0) == {id(seq): [3]}
    assert drafts([seq], 30.0) == {id(seq): [3, 4]}
    assert drafts([seq], 1000.0) == {id(seq): [3, 4, 5, 1, 2]}
    assert drafts([seq], 0.5) == {}
    assert drafts([seq, *(sequence([n]) for n in range(30))], 8.0) == {}
    assert drafts([], 8.0) == {}


def learned(seq: Sequence, odds: float) -> Sequence:
    """`seq` with odds for all that it finds."""
    seq.lookup = Lookup()
    for own in seq.lookup._odds.values():
        for _ in range(200):
            own.learn(int(100 * odds), 100)
    return seq


def test_what_is_likelier_is_drafted_first() -> None:
    seqs = [learned(sequence([1, 2, 3, 1, 2]), 0.9 if n == 3 else 0.2) for n in range(8)]
    found = drafts(seqs, 40.0)
    assert list(found) == [id(seqs[3])]
    assert len(found[id(seqs[3])]) > 8
    assert drafts(seqs, 0.5) == {}


def test_those_without_drafts_wait_half_as_long_again_at_most() -> None:
    """All may wait longer where each gets as much more."""
    busy = [learned(sequence([1, 2, 3] * 9), 1.0) for _ in range(3)]
    quiet = sequence([1, 2, 3, 4])
    assert sum(map(len, drafts(busy, 16.0).values())) == 3 * MOST_DRAFTED
    assert sum(map(len, drafts([*busy, quiet], 16.0).values())) == (16 + 4) // 2
    unlikely = learned(sequence([1, 2, 3] * 9), 0.3)
    assert sum(map(len, drafts([*busy, unlikely], 16.0).values())) == (16 + 4) // 2
    assert sum(map(len, drafts([*busy, quiet], 200.0).values())) == 3 * MOST_DRAFTED


@pytest.mark.parametrize("left", range(4))
def test_no_draft_goes_beyond_the_last_token(left: int) -> None:
    seq = sequence([1, 2] * 9, max_tokens=left)
    assert [len(draft) for draft in drafts([seq], 1e9).values()] == [left - 1] * (left > 1)


def test_drafts_are_bounded() -> None:
    seq = sequence([1, 2] * 9)
    assert [len(draft) for draft in drafts([seq], 1e9).values()] == [MOST_DRAFTED] == [16]


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
        expected += sum(3.0 ** (-1 - n) for n in range(len(found.get(id(seq), ()))))
    num = sum(map(len, found.values()))
    assert expected * (step_tokens + len(seqs)) >= len(seqs) * (step_tokens + len(seqs) + num)


def test_beams_and_grammars_do_not_run_ahead() -> None:
    held = sequence([1, 2, 1, 2])
    held.matcher = object()  # type: ignore[assignment]
    assert drafts([held, sequence([1, 2, 1, 2], beam_width=2)], 1e9) == {}
