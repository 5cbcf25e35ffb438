"""Chooses the next token of each row of a batch, each by its own parameters.

A row's noise is one uniform number made from (seed, choice, position) by a counter-based hash, and
the token is found by inverting the distribution there. So a row's token depends on its logits and
parameters alone: not on its batch mates, not on when or where it resumed.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Final

import torch

from worker.engine.protocol import RawLogprob, SequenceParams
from worker.engine.sequence import Sequence

_MASK: Final = 2**64 - 1


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
    bad = {row for row, ok in enumerate(logits.isfinite().all(-1).tolist()) if not ok}
    shaped = _shape(logits, seqs)
    tokens = shaped.argmax(-1).tolist()
    drawn = [row for row, seq in enumerate(seqs) if not _is_greedy(seq.params) and row not in bad]
    if drawn:
        for row, token in zip(drawn, _draw(shaped, drawn, seqs), strict=True):
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


def _draw(shaped: torch.Tensor, rows: SequenceOf[int], seqs: SequenceOf[Sequence]) -> list[int]:
    """Sample `rows` of [rows, vocab] by temperature, top_k, top_p, min_p, in this order."""
    params = [seqs[row].params for row in rows]
    device = shaped.device
    temperature = torch.tensor([one.temperature for one in params], device=device)
    scaled = shaped[list(rows)] / temperature[:, None]
    draws = torch.tensor(
        [
            uniform(one.seed, seqs[row].index, seqs[row].num_output)
            for row, one in zip(rows, params, strict=True)
        ],
        device=device,
        dtype=torch.float64,
    )
    tokens = torch.empty(len(rows), dtype=torch.long, device=device)
    cut = [at for at, one in enumerate(params) if one.top_k > 0 or one.top_p < 1.0]
    whole = [at for at, one in enumerate(params) if not (one.top_k > 0 or one.top_p < 1.0)]
    if whole:
        min_p = torch.tensor([params[at].min_p for at in whole], device=device)
        tokens[whole] = _invert(_above_min_p(scaled[whole].softmax(-1), min_p), draws[whole])
    if cut:
        top = [params[at] for at in cut]
        ranked, ids = scaled[cut].sort(dim=-1, descending=True, stable=True)
        width = ranked.shape[-1]
        top_k = torch.tensor([one.top_k if one.top_k > 0 else width for one in top], device=device)
        ranked.masked_fill_(
            torch.arange(width, device=device)[None, :] >= top_k[:, None], float("-inf")
        )
        probs = ranked.softmax(-1)
        before = probs.cumsum(-1) - probs
        top_p = torch.tensor([one.top_p for one in top], device=device)
        probs = probs.masked_fill(before >= top_p[:, None], 0.0)
        min_p = torch.tensor([one.min_p for one in top], device=device)
        ranks = _invert(_above_min_p(probs, min_p), draws[cut])
        tokens[cut] = ids.gather(1, ranks[:, None])[:, 0]
    found: list[int] = tokens.tolist()
    return found


def _above_min_p(probs: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Zero what is less likely than `min_p` [rows] times the row's most likely token."""
    least = min_p[:, None] * probs.amax(-1, keepdim=True)
    return probs.masked_fill(probs < least, 0.0)


def _invert(probs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The column at which the running sum of `probs` [rows, n], unnormalised, passes each draw."""
    sums = probs.cumsum(-1, dtype=torch.float64)
    at = torch.searchsorted(sums, draws[:, None] * sums[:, -1:], right=True)[:, 0]
    # rounding may carry a draw past the last column with any weight
    last = probs.shape[-1] - 1 - (probs > 0).flip(-1).to(torch.int8).argmax(-1)
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
