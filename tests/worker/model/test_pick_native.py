"""The kernel that chooses tokens, against sums in float64 over a full sort."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch

from worker.engine.protocol import Job, SequenceParams
from worker.engine.sequence import Sequence, sequences_of
from worker.model.noise import uniform
from worker.model.pick_native import NativePick


@pytest.fixture
def pick(native_pick: NativePick) -> NativePick:
    return native_pick


def sequences(number: int, **params: Any) -> list[Sequence]:
    return [
        sequences_of(Job("j", [1], SequenceParams(max_tokens=9, seed=seed, **params)), 0, 0.0)[0]
        for seed in range(number)
    ]


def chosen(pick: NativePick, logits: torch.Tensor, seqs: list[Sequence]) -> list[int]:
    found: list[int] = pick(logits, logits, seqs).tokens.tolist()
    return found


def shares(row: torch.Tensor, params: SequenceParams) -> dict[int, tuple[float, float]]:
    """Of each token that may be drawn, between which draws it is: of the most likely one first
    where top_k or top_p cut, else in the order of the vocabulary."""
    scaled = row.double() / params.temperature
    cut = params.top_k > 0 or params.top_p < 1
    ids = scaled.sort(descending=True, stable=True).indices if cut else torch.arange(len(row))
    kept = scaled[ids][: params.top_k if params.top_k > 0 else len(row)]
    probs = kept.softmax(-1)
    if cut:
        probs[probs.cumsum(-1) - probs >= params.top_p] = 0
    probs[probs < params.min_p * probs.max()] = 0
    ends = (probs.cumsum(-1) / probs.sum()).tolist()
    begins = [0.0, *ends[:-1]]
    between = zip(begins, ends, strict=True)
    return {int(ids[at]): pair for at, pair in enumerate(between) if probs[at] > 0}


WAYS: list[dict[str, Any]] = [
    {},
    {"top_p": 0.9},
    {"top_p": 0.05},
    {"top_p": 0.9999},
    {"top_k": 1000},
    {"top_k": 40, "top_p": 0.8},
    {"min_p": 0.05},
    {"top_p": 0.95, "min_p": 0.02},
    {"top_k": 300, "top_p": 0.95, "min_p": 0.001},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0, 60.0])
@pytest.mark.parametrize("vocab", [3, 17, 256, 4099])
def test_draws_fall_where_they_should(
    pick: NativePick, vocab: int, spread: float, dtype: torch.dtype
) -> None:
    """Within what float32 rounds; equal logits, of which bfloat16 has many, may swap places."""
    row = (torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * spread).to(dtype)
    for how, temperature in itertools.product(WAYS, (0.3, 1.0, 1.9)):
        seqs = sequences(40, temperature=temperature, **how)
        allowed = shares(row.float(), seqs[0].params)
        for seq, token in zip(seqs, chosen(pick, row.expand(40, -1), seqs), strict=True):
            draw = uniform(seq.params.seed, 0, 0)
            begin, end = allowed[token]
            assert begin - 2e-5 <= draw <= end + 2e-5, (how, temperature, seq.params.seed)


@pytest.mark.parametrize("how", WAYS)
def test_tokens_that_are_banned_are_never_chosen(pick: NativePick, how: dict[str, Any]) -> None:
    row = torch.zeros(700)
    row[[0, 1, 255, 256, 699]] = float("-inf")
    seqs = sequences(400, temperature=1.0, **how)
    assert not {0, 1, 255, 256, 699} & set(chosen(pick, row.expand(400, -1), seqs))
    alone = torch.full((700,), float("-inf"))
    alone[431] = -3.0
    assert set(chosen(pick, alone.expand(400, -1), seqs)) == {431}


@pytest.mark.parametrize("how", [{"temperature": 0.0}, *WAYS])
def test_rows_without_any_number_give_some_token(pick: NativePick, how: dict[str, Any]) -> None:
    seqs = sequences(5, **how)
    for bad in (float("nan"), float("inf"), float("-inf")):
        logits = torch.zeros(5, 300)
        logits[1] = bad
        logits[3, 299] = bad
        picked = pick(logits, logits, seqs)
        assert picked.finite.tolist() == [True, False, True, False, True]
        assert all(0 <= token < 300 for token in picked.tokens.tolist())


@pytest.mark.parametrize("how", [{}, {"top_k": 500}])
def test_the_noise_is_that_of_seed_choice_and_position(
    pick: NativePick, how: dict[str, Any]
) -> None:
    """Of tokens that are equally likely the one at that share of the vocabulary."""
    params = SequenceParams(max_tokens=9, seed=5, temperature=1.0, **how)
    logits = torch.zeros(3, 500)
    for position in range(4):
        seqs = sequences_of(Job("j", [1], params, n=3), 0, 0.0)
        for seq in seqs:
            for _ in range(position):
                seq.append(7)
        expected = [int(500 * uniform(5, index, position)) for index in range(3)]
        assert chosen(pick, logits, seqs) == expected


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "num"),
    [
        (0, 1.0, 0.0, 8),
        (8, 1.0, 0.0, 8),
        (4, 1.0, 0.0, 4),
        (0, 0.5, 0.0, 4),
        (8, 0.25, 1.0, 2),
        (0, 1.0, 1.0, 8),
        (8, 1.0, 1.0, 8),
    ],
)
def test_borders_are_exact(
    pick: NativePick, top_k: int, top_p: float, min_p: float, num: int
) -> None:
    """Of `num` tokens that are as likely, each begins at its share, and ends before the next."""
    logits = torch.full((2 * num, 300), float("-inf"))
    logits[:, 40:48] = 2.0
    begins = torch.arange(num, dtype=torch.float64) / num
    draws = torch.cat([begins, begins + 1 / num - 2.0**-53])
    picked = pick._run(
        logits,
        torch.ones(2 * num),
        torch.full((2 * num,), top_k),
        torch.full((2 * num,), top_p),
        torch.full((2 * num,), min_p),
        draws,
    )
    assert picked.tokens.tolist() == [*range(40, 40 + num)] * 2


def test_the_first_of_equal_ones_is_the_most_likely(pick: NativePick) -> None:
    seqs = sequences(3, temperature=0.0)
    logits = torch.zeros(3, 1000)
    logits[0, [17, 900]] = 2.0
    logits[1, 999] = 2.0
    assert chosen(pick, logits, seqs) == [17, 999, 0]
    assert chosen(pick, logits.to(torch.float16), seqs) == [17, 999, 0]
    assert chosen(pick, logits.t().contiguous().t(), seqs) == [17, 999, 0]


def test_banned_tokens_do_not_make_a_row_bad(pick: NativePick) -> None:
    logits = torch.randn(2, 100).to(torch.bfloat16)
    shaped = logits.float()
    shaped[:, :99] = float("-inf")
    picked = pick(logits, shaped, sequences(2))
    assert picked.tokens.tolist() == [99, 99]
    assert picked.finite.all()


def test_many_rows_are_each_what_they_are_alone(pick: NativePick) -> None:
    chance = random.Random(1)
    logits = torch.randn((64, 5000), generator=torch.Generator().manual_seed(3)) * 3
    seqs = [
        sequences(1, temperature=chance.choice([0.0, 0.7, 1.0]), **chance.choice(WAYS))[0]
        for _ in range(64)
    ]
    together = chosen(pick, logits, seqs)
    assert together == [
        chosen(pick, logits[row : row + 1], [seq])[0] for row, seq in enumerate(seqs)
    ]


def test_a_border_far_behind_the_most_likely_token(pick: NativePick) -> None:
    """Behind the bins, where tokens are cut without sorting all."""
    row = torch.randn(5000, generator=torch.Generator().manual_seed(4)) * 40
    seqs = sequences(60, temperature=0.05, top_k=700, min_p=1e-20)
    allowed = shares(row, seqs[0].params)
    for seq, token in zip(seqs, chosen(pick, row.expand(60, -1), seqs), strict=True):
        begin, end = allowed[token]
        assert begin - 2e-5 <= uniform(seq.params.seed, 0, 0) <= end + 2e-5
    equal = sequences(400, temperature=1.0, top_k=3)
    assert set(chosen(pick, torch.zeros(400, 5000), equal)) == {0, 1, 2}


def test_any_top_k_is_taken(pick: NativePick) -> None:
    logits = torch.zeros(2, 50)
    assert all(0 <= token < 50 for token in chosen(pick, logits, sequences(2, top_k=2**70)))
