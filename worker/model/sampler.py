"""Chooses the next token of each row of a batch, each by its own parameters.

A row's noise is one uniform number made from (seed, choice, position) by a counter-based hash, and
the token is found by inverting the distribution there. So a row's token depends on its logits and
parameters alone: not on its batch mates, not on when or where it resumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F

from worker.engine.protocol import RawLogprob, SequenceParams
from worker.engine.sequence import Sequence

_MASK: Final = 2**64 - 1
_WIDTHS: Final = (256, 4096)  # most likely tokens to look at, before all of them
_PART: Final = 256


@dataclass(frozen=True, slots=True)
class Choice:
    """What was sampled for a row: the token, or `token_id` None where its logits are not finite."""

    token_id: int | None
    logprob: RawLogprob | None = None


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) from (seed, choice, position): two rounds of splitmix64."""
    state = (seed ^ (index * 0xD1342543DE82EF95)) & _MASK
    return (_splitmix(_splitmix(state) ^ position) >> 11) * 2.0**-53


def _splitmix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def sample(logits: torch.Tensor, seqs: SequenceOf[Sequence]) -> list[Choice]:
    """One token a row.

    Args:
        logits: [rows, vocab], any float dtype.
        seqs: the rows' sequences; only read.
    """
    logits = logits.float()
    # one pass: a sum is finite only if all its terms are
    bad = {row for row, total in enumerate(logits.sum(-1).tolist()) if not math.isfinite(total)}
    shaped = _shape(logits, seqs)
    tokens = [0] * len(seqs)
    greedy = [row for row, seq in enumerate(seqs) if _is_greedy(seq.params)]
    drawn = [row for row, seq in enumerate(seqs) if not _is_greedy(seq.params) and row not in bad]
    for rows, found in (
        (greedy, _rows(shaped, greedy).argmax(-1).tolist() if greedy else []),
        (drawn, _draw(_rows(shaped, drawn), [seqs[row] for row in drawn]) if drawn else []),
    ):
        for row, token in zip(rows, found, strict=True):
            tokens[row] = token
    raw = _raw_logprobs(logits, tokens, [seq.params.logprobs for seq in seqs])
    return [
        Choice(None) if row in bad else Choice(tokens[row], raw.get(row))
        for row in range(len(seqs))
    ]


def prompt_logprobs(
    logits: torch.Tensor, targets: SequenceOf[int], num_top: int
) -> list[RawLogprob]:
    """Log probabilities of prompt tokens.

    Args:
        logits: [tokens, vocab], at the positions before the targets.
        targets: the tokens that did come there.
        num_top: how many alternatives.
    """
    found = _raw_logprobs(logits.float(), targets, [num_top] * len(targets))
    return [found[row] for row in range(len(targets))]


def _is_greedy(params: SequenceParams) -> bool:
    return params.temperature < 1e-5 or params.top_p < 1e-8 or params.top_k == 1


def _shape(logits: torch.Tensor, seqs: SequenceOf[Sequence]) -> torch.Tensor:
    """Penalties, bias and forbidden tokens: what changes the greedy choice too."""
    rows = [row for row, seq in enumerate(seqs) if _needs_shaping(seq)]
    if not rows:
        return logits
    logits = logits.clone()
    for row in rows:
        _shape_row(logits[row], seqs[row])
    return logits


def _needs_shaping(seq: Sequence) -> bool:
    params = seq.params
    return bool(
        params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
        or params.logit_bias
        or seq.num_output < params.min_tokens
    )


def _shape_row(row: torch.Tensor, seq: Sequence) -> None:
    """Change one row [vocab] in place; penalties as in CTRL (repetition) and OpenAI's API."""
    params, device = seq.params, row.device
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(seq.token_ids)), device=device)
        scores = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    if (params.presence_penalty or params.frequency_penalty) and seq.output_counts:
        ids = torch.tensor(list(seq.output_counts), device=device)
        counts = torch.tensor(list(seq.output_counts.values()), device=device, dtype=row.dtype)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts
    for token_id, bias in params.logit_bias:
        row[token_id] += bias
    if seq.num_output < params.min_tokens:
        forbidden = {*params.eos_token_ids, *params.stop_token_ids}
        row[[token for token in forbidden if token < row.shape[0]]] = float("-inf")


def _rows(logits: torch.Tensor, rows: SequenceOf[int]) -> torch.Tensor:
    return logits if len(rows) == len(logits) else logits[list(rows)]


def _draw(shaped: torch.Tensor, seqs: SequenceOf[Sequence]) -> list[int]:
    """Sample each row of [rows, vocab] by temperature, top_k, top_p, min_p, in this order."""
    params = [seq.params for seq in seqs]
    temperature = torch.tensor([one.temperature for one in params], device=shaped.device)
    scaled = shaped / temperature[:, None]
    draws = torch.tensor(
        [uniform(seq.params.seed, seq.index, seq.num_output) for seq in seqs],
        device=shaped.device,
        dtype=torch.float64,
    )
    whole = [at for at, one in enumerate(params) if not _is_cut(one)]
    left = [at for at, one in enumerate(params) if _is_cut(one)]
    tokens = [0] * len(seqs)
    if whole:
        probs = _above_min_p(_rows(scaled, whole).softmax(-1), [params[at] for at in whole])
        for at, token in zip(whole, _invert(probs, draws[whole]).tolist(), strict=True):
            tokens[at] = token
    for width in (*_WIDTHS, shaped.shape[-1]):
        if not left:
            break
        found = _draw_top(scaled[left], draws[left], [params[at] for at in left], width)
        for at, token in zip(left, found, strict=True):
            tokens[at] = token
        left = [at for at, token in zip(left, found, strict=True) if token < 0]
    return tokens


def _is_cut(params: SequenceParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0


def _draw_top(
    scaled: torch.Tensor, draws: torch.Tensor, params: SequenceOf[SequenceParams], width: int
) -> list[int]:
    """Sample each row among its `width` most likely tokens; -1 where top_p reaches beyond them.

    Ranking a whole vocabulary takes longer than the model's step, and is hardly ever needed.
    """
    vocab = scaled.shape[-1]
    width = min(width, vocab)
    ranked, ids = scaled.topk(width, dim=-1)
    top_k = torch.tensor(
        [min(one.top_k, vocab) if one.top_k > 0 else vocab for one in params], device=scaled.device
    )
    top_p = torch.tensor([one.top_p for one in params], device=scaled.device)
    beyond = torch.arange(width, device=scaled.device)[None, :] >= top_k[:, None]
    ranked.masked_fill_(beyond, float("-inf"))
    cut = top_k <= width
    # what the tokens that top_k leaves weigh together
    total = torch.where(cut, ranked.logsumexp(-1), scaled.logsumexp(-1))
    probs = (ranked - total[:, None]).exp()
    sums = probs.cumsum(-1)
    enough = cut | ((top_k == vocab) & (sums[:, -1] >= top_p))
    probs = probs.masked_fill(sums - probs >= top_p[:, None], 0.0)
    ranks = _invert(_above_min_p(probs, params), draws)
    tokens = ids.gather(1, ranks[:, None])[:, 0]
    found: list[int] = torch.where(enough, tokens, -1).tolist()
    return found


def _above_min_p(probs: torch.Tensor, params: SequenceOf[SequenceParams]) -> torch.Tensor:
    """Zero what is less likely than `min_p` times the row's most likely token."""
    if not any(one.min_p for one in params):
        return probs
    min_p = torch.tensor([one.min_p for one in params], device=probs.device)
    least = min_p[:, None] * probs.amax(-1, keepdim=True)
    return probs.masked_fill(probs < least, 0.0)


def _invert(probs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The column at which the running sum of `probs` [rows, n], unnormalised, passes each draw.

    In two stages, parts of a row and then the columns of one part: a running sum over a whole
    vocabulary is slow.
    """
    parts = F.pad(probs, (0, -probs.shape[-1] % _PART)).view(len(probs), -1, _PART)
    weights = parts.sum(-1).double()
    target = draws[:, None] * weights.sum(-1, keepdim=True)
    part = _passed(weights, target)
    rest = target - (weights.cumsum(-1) - weights).gather(1, part)
    inside = parts.gather(1, part[:, :, None].expand(-1, 1, _PART))[:, 0].double()
    return (part * _PART + _passed(inside, rest))[:, 0]


def _passed(weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The column [rows, 1] at which the running sum of `weights` [rows, n] passes `target`."""
    at = torch.searchsorted(weights.cumsum(-1), target, right=True)
    # rounding may carry a target past the last column with any weight
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).to(torch.int8).argmax(-1, keepdim=True)
    return torch.minimum(at, last)


def _raw_logprobs(
    logits: torch.Tensor, tokens: SequenceOf[int], num_tops: SequenceOf[int | None]
) -> dict[int, RawLogprob]:
    """Log probabilities of `tokens` under the raw distribution, for rows that ask for them."""
    wanted = [(row, num) for row, num in enumerate(num_tops) if num is not None]
    if not wanted:
        return {}
    rows = [row for row, _num in wanted]
    logprobs = logits[rows].log_softmax(-1)
    chosen = logprobs.gather(
        1, torch.tensor([tokens[row] for row in rows], device=logits.device)[:, None]
    )[:, 0].tolist()
    most = max(num for _row, num in wanted)
    values, ids = logprobs.topk(most, dim=-1) if most else (logprobs[:, :0], logprobs[:, :0])
    pairs = zip(wanted, chosen, values.tolist(), ids.long().tolist(), strict=True)
    return {
        row: RawLogprob(tokens[row], own, list(zip(top_ids[:num], top[:num], strict=True)))
        for (row, num), own, top, top_ids in pairs
    }
