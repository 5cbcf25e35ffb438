"""Chooses the tokens of rows by torch's operations, on any device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Final

import torch
import torch.nn.functional as F

from worker.engine.protocol import SequenceParams
from worker.engine.sequence import Sequence
from worker.model.noise import is_greedy, uniform
from worker.model.transfer import rows_of, to_device

_WIDTHS: Final = (256, 4096)  # most likely tokens to look at, before all of them
_PART: Final = 256


class TorchPick:
    """The tokens of some rows; as `sampler.Picked`.

    Args:
        logits: [rows, vocab], any float dtype.
        shaped: the same with penalties, bias and without forbidden tokens.
        seqs: the rows' sequences.
    """

    def __init__(
        self, logits: torch.Tensor, shaped: torch.Tensor, seqs: SequenceOf[Sequence]
    ) -> None:
        wide = logits.float()
        self.finite = wide.sum(-1).isfinite()  # one pass: a sum is so only if all its terms are
        shaped = wide if shaped is logits else shaped.float()
        greedy = [row for row, seq in enumerate(seqs) if is_greedy(seq.params)]
        self._drawn = [row for row, seq in enumerate(seqs) if not is_greedy(seq.params)]
        parts: list[tuple[list[int], torch.Tensor]] = []
        self._lottery: _Lottery | None = None
        if greedy:
            parts.append((greedy, rows_of(shaped, greedy).argmax(-1)))
        if self._drawn:
            drawn = [seqs[row] for row in self._drawn]
            self._lottery = _Lottery(rows_of(shaped, self._drawn), drawn)
            parts.append((self._drawn, self._lottery.tokens))
        # of a row that is not finite anything may come, beyond the vocabulary too
        self.tokens = _merged(parts, len(seqs)).clamp(max=logits.shape[-1] - 1)

    def wider(self, rows: set[int]) -> dict[int, int]:
        """As `Picked.wider`."""
        if self._lottery is None or not rows:
            return {}
        places = [at for at, row in enumerate(self._drawn) if row in rows]
        found = self._lottery.wider(places)
        return {self._drawn[at]: token for at, token in zip(places, found, strict=True)}


def _merged(parts: SequenceOf[tuple[list[int], torch.Tensor]], num_rows: int) -> torch.Tensor:
    """One tensor [num_rows] of those for parts of the rows."""
    if len(parts) == 1:
        return parts[0][1]
    merged = parts[0][1].new_empty(num_rows)
    for rows, values in parts:
        merged[to_device(rows, merged.device)] = values
    return merged


class _Lottery:
    """Rows drawn by temperature, top_k, top_p, min_p, in this order.

    Attributes:
        tokens: [rows]; -1 where top_p reaches beyond the tokens that were ranked.

    Args:
        shaped: [rows, vocab].
        seqs: the rows' sequences.
    """

    def __init__(self, shaped: torch.Tensor, seqs: SequenceOf[Sequence]) -> None:
        device = shaped.device
        self._params = [seq.params for seq in seqs]
        temperature = to_device([one.temperature for one in self._params], device)
        self._scaled = shaped / temperature[:, None]
        self._draws = to_device(
            [uniform(seq.params.seed, seq.index, seq.num_output) for seq in seqs],
            device,
            torch.float64,
        )
        parts: list[tuple[list[int], torch.Tensor]] = []
        whole = [at for at, one in enumerate(self._params) if not _is_cut(one)]
        if whole:
            probs = rows_of(self._scaled, whole).softmax(-1)
            probs = _above_min_p(probs, [self._params[at] for at in whole])
            parts.append((whole, _invert(probs, rows_of(self._draws, whole))))
        cut = [at for at, one in enumerate(self._params) if _is_cut(one)]
        if cut:
            parts.append((cut, self._among(cut, _WIDTHS[0])))
        self.tokens = _merged(parts, len(seqs))

    def wider(self, places: list[int]) -> list[int]:
        """The tokens at `places`, chosen among as many as it takes; waits for the device."""
        tokens = dict.fromkeys(places, -1)
        for width in (*_WIDTHS[1:], self._scaled.shape[-1]):
            left = [at for at in places if tokens[at] < 0]
            if left:
                tokens.update(zip(left, self._among(left, width).tolist(), strict=True))
        return [tokens[at] for at in places]

    def _among(self, places: list[int], width: int) -> torch.Tensor:
        params = [self._params[at] for at in places]
        return _draw_top(rows_of(self._scaled, places), rows_of(self._draws, places), params, width)


def _is_cut(params: SequenceParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0


def _draw_top(
    scaled: torch.Tensor, draws: torch.Tensor, params: SequenceOf[SequenceParams], width: int
) -> torch.Tensor:
    """Sample each row among its `width` most likely tokens; -1 where top_p reaches beyond them.

    Ranking a whole vocabulary takes longer than the model's step, and is hardly ever needed.
    """
    vocab = scaled.shape[-1]
    width = min(width, vocab)
    ranked, ids = scaled.topk(width, dim=-1)
    top_k = to_device(
        [min(one.top_k, vocab) if one.top_k > 0 else vocab for one in params], scaled.device
    )
    top_p = to_device([one.top_p for one in params], scaled.device)
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
    return torch.where(enough, tokens, -1)


def _above_min_p(probs: torch.Tensor, params: SequenceOf[SequenceParams]) -> torch.Tensor:
    """Zero what is less likely than `min_p` times the row's most likely token."""
    if not any(one.min_p for one in params):
        return probs
    min_p = to_device([one.min_p for one in params], probs.device)
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
