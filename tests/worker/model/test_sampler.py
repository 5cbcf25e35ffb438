"""The sampler: each row by its own parameters, each token from (seed, choice, position)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from worker.engine.protocol import Job, SequenceParams
from worker.engine.sequence import Sequence, sequences_of
from worker.model.noise import uniform
from worker.model.pick_torch import TorchPick
from worker.model.sampler import Choice, Draw, Pick
from worker.model.sampler import sample as sample_by


class Way:
    """How the tokens of the test that runs are chosen."""

    pick: Pick = TorchPick


@pytest.fixture(autouse=True, params=["torch", "native"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds for both ways to choose."""
    pick = TorchPick
    if request.param == "native":
        pick = request.getfixturevalue("native_pick")
    monkeypatch.setattr(Way, "pick", staticmethod(pick))


def sample(logits: torch.Tensor, seqs: list[Sequence]) -> list[Choice]:
    return sample_by(logits, seqs, Way.pick)


def sequence(
    prompt: list[int] | None = None, output: list[int] | None = None, **params: Any
) -> Sequence:
    values: dict[str, Any] = {"max_tokens": 10_000, **params}
    seq = sequences_of(Job("j", prompt or [1], SequenceParams(**values)), 0, 0.0)[0]
    for token in output or []:
        seq.append(token)
    return seq


def tokens(logits: torch.Tensor, *seqs: Sequence) -> list[int | None]:
    return [choice.token_id for choice in sample(logits, list(seqs))]


def draws(logits: torch.Tensor, number: int = 4000, **params: Any) -> Counter[int | None]:
    """What many seeds draw from one row of logits."""
    seqs = [sequence(seed=seed, **params) for seed in range(number)]
    return Counter(tokens(logits.expand(number, -1), *seqs))


def test_temperature_0_takes_the_most_likely_token() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert tokens(logits, sequence(temperature=0.0)) == [1]


def test_the_draws_follow_the_distribution() -> None:
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = draws(probs.log()[None], temperature=1.0)
    for token, prob in enumerate(probs.tolist()):
        assert found[token] / 4000 == pytest.approx(prob, abs=0.03)


def test_temperature_sharpens() -> None:
    probs = torch.tensor([0.4, 0.6])
    sharp = probs**2 / (probs**2).sum()
    found = draws(probs.log()[None], temperature=0.5)
    assert found[1] / 4000 == pytest.approx(sharp[1].item(), abs=0.03)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 2}, {2, 3}),
        ({"top_p": 0.65}, {2, 3}),
        ({"top_p": 0.75}, {1, 2, 3}),
        ({"min_p": 0.6}, {2, 3}),
        ({"top_k": 3, "top_p": 0.5}, {2, 3}),
        ({"top_k": 1}, {3}),
        ({"top_p": 0.0}, {3}),
        ({"top_k": -1, "top_p": 1.0}, {0, 1, 2, 3}),
    ],
)
def test_truncation_keeps_exactly_the_likely_ones(params: dict[str, Any], kept: set[int]) -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    assert set(draws(logits, 600, temperature=1.0, **params)) == kept


def test_a_row_does_not_depend_on_its_batch_mates() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 50)
    seqs = [
        sequence(seed=4, temperature=1.0),
        sequence(seed=5, temperature=0.3, top_p=0.9),
        sequence(temperature=0.0),
        sequence(seed=6, temperature=1.3, top_k=7),
        sequence(seed=7, temperature=1.0, min_p=0.1, output=[3, 3, 4], presence_penalty=1.0),
        sequence(seed=8, temperature=1.0, repetition_penalty=1.3),
    ]
    alone = [tokens(logits[row : row + 1], seq)[0] for row, seq in enumerate(seqs)]
    assert tokens(logits, *seqs) == alone
    assert tokens(logits.flip(0), *reversed(seqs)) == alone[::-1]


def test_choices_and_positions_draw_their_own_noise() -> None:
    seen = {uniform(3, index, position) for index in range(20) for position in range(200)}
    assert len(seen) == 4000
    assert all(0 <= value < 1 for value in seen)
    assert uniform(-1, 0, 0) != uniform(1, 0, 0)


def test_penalties_follow_their_definitions() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0, 0.0]])
    presence = sequence(temperature=0.0, output=[0], presence_penalty=0.2)
    assert tokens(logits, presence) == [1]
    once = sequence(temperature=0.0, output=[0], frequency_penalty=0.06)
    assert tokens(logits, once) == [0]
    twice = sequence(temperature=0.0, output=[0, 0], frequency_penalty=0.06)
    assert tokens(logits, twice) == [1]
    # presence and frequency see the output alone, repetition the prompt too
    assert tokens(logits, sequence(prompt=[0], temperature=0.0, presence_penalty=2.0)) == [0]
    assert tokens(logits, sequence(prompt=[0], temperature=0.0, repetition_penalty=1.2)) == [1]


def test_bias_and_minimum_length_change_the_greedy_choice() -> None:
    logits = torch.tensor([[5.0, 1.0, 4.0]])
    assert tokens(logits, sequence(temperature=0.0, logit_bias=((1, 9.0),))) == [1]
    waiting = sequence(temperature=0.0, min_tokens=1, stop_token_ids=(0,), eos_token_ids=(0,))
    assert tokens(logits, waiting) == [2]


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    seq = sequence(temperature=0.1, seed=1, logprobs=2, logit_bias=((0, 100.0),))
    choice = sample(logits, [seq])[0]
    expected = logits[0].log_softmax(-1).tolist()
    assert choice.token_id == 0
    assert choice.logprob is not None
    assert choice.logprob.logprob == pytest.approx(expected[0])
    assert [token for token, _value in choice.logprob.top] == [2, 1]
    assert [value for _token, value in choice.logprob.top] == pytest.approx(
        [expected[2], expected[1]]
    )


def test_a_row_that_is_not_finite_fails_alone() -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [1.0, 0.0]])
    seqs = [sequence(temperature=0.0), sequence(temperature=1.0, seed=1), sequence(temperature=0.0)]
    assert tokens(logits, *seqs) == [1, None, 0]


@pytest.mark.parametrize("spread", [4.0, 1.0, 0.1])
@pytest.mark.parametrize("params", [{"top_p": 0.9}, {"top_k": 40}, {"top_k": 3000, "top_p": 0.8}])
def test_the_nucleus_is_that_of_a_full_sort(spread: float, params: dict[str, Any]) -> None:
    """From a nucleus of a few tokens to one of most of the vocabulary. Draws that float32 cannot
    tell from the border between two tokens are left out."""
    logits = torch.randn(6000, generator=torch.Generator().manual_seed(1)) * spread
    ranked, ids = logits.double().sort(descending=True)
    probs = ranked[: params.get("top_k", 6000)].softmax(-1)
    before = probs.cumsum(-1) - probs
    probs[before >= params.get("top_p", 1.0)] = 0
    sums = probs.cumsum(-1) / probs.sum()
    seeds = [seed for seed in range(200) if (sums - uniform(seed, 0, 0)).abs().min() > 1e-7]
    assert len(seeds) > 195
    expected = [ids[int((sums <= uniform(seed, 0, 0)).sum())].item() for seed in seeds]
    seqs = [sequence(seed=seed, temperature=1.0, **params) for seed in seeds]
    assert tokens(logits.expand(len(seeds), -1), *seqs) == expected


def test_a_row_is_not_changed_by_its_batch_mates() -> None:
    logits = torch.randn((5, 6000), generator=torch.Generator().manual_seed(2))
    seqs = [
        sequence(seed=4, temperature=0.7),
        sequence(seed=5, temperature=1.0, top_p=0.5),
        sequence(temperature=0.0),
        sequence(seed=6, temperature=1.0, top_k=9, min_p=0.01),
        sequence(seed=7, temperature=1.5, top_p=0.99),
    ]
    together = tokens(logits, *seqs)
    assert together == [tokens(logits[row : row + 1], seqs[row])[0] for row in range(5)]


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_row_that_is_not_finite_goes_on_with_a_token_of_the_vocabulary(top_p: float) -> None:
    """The next step may be launched with it before anybody looks: another one would be an error of
    the device, which ends all."""
    params = SequenceParams(max_tokens=9, seed=1, top_p=top_p, logprobs=3)
    seqs = sequences_of(Job("a", [1], params, n=3), 0, 0.0)
    logits = torch.zeros(3, 300)
    logits[1] = float("nan")
    draw = Draw(logits, seqs, Way.pick)
    assert all(0 <= token < 300 for token in draw.tokens.tolist())
    assert [choice.token_id is None for choice in draw.choices()] == [False, True, False]
