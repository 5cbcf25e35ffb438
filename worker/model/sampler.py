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
import torch.nn.functional as F

from worker.engine.beams import Candidates, num_candidates
from worker.engine.protocol import RawLogprob, SequenceParams
from worker.engine.sequence import Sequence
from worker.model.transfer import Fetch, to_device

_MASK: Final = 2**64 - 1
_WIDTHS: Final = (256, 4096)  # most likely tokens to look at, before all of them
_PART: Final = 256


@dataclass(frozen=True, slots=True)
class Choice:
    """What was sampled for a row: the token, or `token_id` None where its logits are not finite.

    `late` says that it is not the one that `Draw.tokens` held. A beam has `candidates`, and its
    token has no meaning.
    """

    token_id: int | None
    logprob: RawLogprob | None = None
    late: bool = False
    candidates: Candidates | None = None


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) from (seed, choice, position): two rounds of splitmix64."""
    state = (seed ^ (index * 0xD1342543DE82EF95)) & _MASK
    return (_splitmix(_splitmix(state) ^ position) >> 11) * 2.0**-53


def _splitmix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


class Draw:
    """One token for each row of a batch, chosen on the device and not yet waited for.

    Attributes:
        tokens: [rows], int64, on the device. `choices` replaces a token where ranking the likeliest
            ones was not enough to choose it, which is rare, and says so in `Choice.late`.

    Args:
        logits: [rows, vocab], any float dtype; not read any more once this is made.
        seqs: the rows' sequences; only read, and only now.
    """

    def __init__(self, logits: torch.Tensor, seqs: SequenceOf[Sequence]) -> None:
        logits = logits.float()
        finite = logits.sum(-1).isfinite()  # one pass: a sum is finite only if all its terms are
        self._beams = _Beams(logits, seqs)
        shaped = _shape(logits, seqs)
        greedy = [row for row, seq in enumerate(seqs) if _is_greedy(seq.params)]
        drawn = [row for row, seq in enumerate(seqs) if not _is_greedy(seq.params)]
        parts: list[tuple[list[int], torch.Tensor]] = []
        self._lottery: _Lottery | None = None
        if greedy:
            parts.append((greedy, _rows(shaped, greedy).argmax(-1)))
        if drawn:
            self._lottery = _Lottery(_rows(shaped, drawn), [seqs[row] for row in drawn])
            parts.append((drawn, self._lottery.tokens))
        self._drawn = drawn
        # of a row that is not finite anything may come, beyond the vocabulary too
        found = _merged(parts, len(seqs)).clamp(max=logits.shape[-1] - 1)
        self.tokens = found.clamp(min=0)
        self._found = Fetch(torch.stack([found, finite.long()]))
        nums = [None if seq.is_beam else seq.params.logprobs for seq in seqs]
        self._raw = _RawLogprobs(logits, self.tokens, nums)

    def choices(self) -> list[Choice]:
        """The tokens on the host; waits for the device, but not for what was queued since."""
        tokens, finite = self._found.read()
        late = {row for row, token in enumerate(tokens) if token < 0 and finite[row]}
        if self._lottery is not None and late:
            places = [at for at, row in enumerate(self._drawn) if row in late]
            for at, token in zip(places, self._lottery.wider(places), strict=True):
                tokens[self._drawn[at]] = token
        raw = self._raw.read(tokens)
        beams = self._beams.read()
        return [
            Choice(token, raw.get(row), late=row in late, candidates=beams.get(row))
            if finite[row]
            else Choice(None)
            for row, token in enumerate(tokens)
        ]


def sample(logits: torch.Tensor, seqs: SequenceOf[Sequence]) -> list[Choice]:
    """One token a row, waited for.

    Args:
        logits: [rows, vocab], any float dtype.
        seqs: the rows' sequences; only read.
    """
    return Draw(logits, seqs).choices()


def prompt_logprobs(
    logits: torch.Tensor, targets: SequenceOf[int], num_top: int
) -> list[RawLogprob]:
    """Log probabilities of prompt tokens.

    Args:
        logits: [tokens, vocab], at the positions before the targets.
        targets: the tokens that did come there.
        num_top: how many alternatives.
    """
    ids = to_device(targets, logits.device)
    found = _RawLogprobs(logits.float(), ids, [num_top] * len(targets)).read(targets)
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
        or seq.matcher
    )


def _shape_row(row: torch.Tensor, seq: Sequence) -> None:
    """Change one row [vocab] in place; penalties as in CTRL (repetition) and OpenAI's API."""
    params, device = seq.params, row.device
    if params.repetition_penalty != 1.0:
        seen = to_device(sorted(set(seq.token_ids)), device)
        scores = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    if (params.presence_penalty or params.frequency_penalty) and seq.output_counts:
        ids = to_device(list(seq.output_counts), device)
        counts = to_device(list(seq.output_counts.values()), device, row.dtype)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts
    for token_id, bias in params.logit_bias:
        row[token_id] += bias
    if seq.num_output < params.min_tokens:
        forbidden = {*params.eos_token_ids, *params.stop_token_ids}
        ids = to_device([id for id in forbidden if id < row.shape[0]], device, torch.long)
        row.index_fill_(0, ids, float("-inf"))
    if seq.matcher is not None and (allowed := seq.matcher.allowed()) is not None:
        forbidden_ids = torch.from_numpy(~allowed[: row.shape[0]]).to(device)
        row[: len(forbidden_ids)].masked_fill_(forbidden_ids, float("-inf"))
        row[len(forbidden_ids) :] = float("-inf")


def _rows(logits: torch.Tensor, rows: SequenceOf[int]) -> torch.Tensor:
    if len(rows) == len(logits):
        return logits
    return logits.index_select(0, to_device(rows, logits.device))


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
            probs = _rows(self._scaled, whole).softmax(-1)
            probs = _above_min_p(probs, [self._params[at] for at in whole])
            parts.append((whole, _invert(probs, _rows(self._draws, whole))))
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
        return _draw_top(_rows(self._scaled, places), _rows(self._draws, places), params, width)


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


class _Beams:
    """The candidates of those rows that are beams.

    Penalties, bias and forbidden tokens change log probabilities here, not logits, as in the beam
    search of transformers.

    Args:
        logits: [rows, vocab], float32.
        seqs: the rows' sequences.
    """

    def __init__(self, logits: torch.Tensor, seqs: SequenceOf[Sequence]) -> None:
        self._beams = [(row, seq.params) for row, seq in enumerate(seqs) if seq.is_beam]
        if not self._beams:
            return
        rows = [row for row, _params in self._beams]
        logprobs = _rows(logits, rows).log_softmax(-1)
        shaped = _shape(logprobs, [seqs[row] for row in rows])
        most = max(num_candidates(params) for _row, params in self._beams)
        scores, ids = shaped.topk(min(most, shaped.shape[-1]), dim=-1)
        self._scores, self._ids = Fetch(scores), Fetch(ids)
        self._raw = Fetch(logprobs.gather(1, ids))
        num_top = max(params.logprobs or 0 for _row, params in self._beams)
        values, top = logprobs.topk(num_top, dim=-1)
        self._top = (Fetch(values), Fetch(top))

    def read(self) -> dict[int, Candidates]:
        """By row; waits for the device."""
        if not self._beams:
            return {}
        scores, ids, raw = self._scores.read(), self._ids.read(), self._raw.read()
        values, top = (fetch.read() for fetch in self._top)
        found: dict[int, Candidates] = {}
        for at, (row, params) in enumerate(self._beams):
            num, wants = num_candidates(params), params.logprobs is not None
            best = list(zip(top[at], values[at], strict=True))[: params.logprobs or 0]
            found[row] = Candidates(
                ids[at][:num], scores[at][:num], raw[at][:num] if wants else (), best
            )
        return found


class _RawLogprobs:
    """Log probabilities of tokens under the raw distribution, for the rows that ask for them.

    Args:
        logits: [rows, vocab], float32.
        tokens: [rows], on the same device.
        num_tops: alternatives for each row, None where nothing is asked for.
    """

    def __init__(
        self, logits: torch.Tensor, tokens: torch.Tensor, num_tops: SequenceOf[int | None]
    ) -> None:
        self._wanted = [(row, num) for row, num in enumerate(num_tops) if num is not None]
        if not self._wanted:
            return
        rows = [row for row, _num in self._wanted]
        self._logprobs = _rows(logits, rows).log_softmax(-1)
        self._supposed = Fetch(_rows(tokens, rows))
        self._own = Fetch(self._logprobs.gather(1, _rows(tokens, rows)[:, None])[:, 0])
        most = max(num for _row, num in self._wanted)
        values, ids = self._logprobs.topk(most, dim=-1)
        self._top = (Fetch(values), Fetch(ids))

    def read(self, tokens: SequenceOf[int]) -> dict[int, RawLogprob]:
        """By row; `tokens` are the final ones, on the host."""
        if not self._wanted:
            return {}
        supposed, own = self._supposed.read(), self._own.read()
        values, ids = (fetch.read() for fetch in self._top)
        found: dict[int, RawLogprob] = {}
        for at, (row, num) in enumerate(self._wanted):
            token = tokens[row]
            same = token == supposed[at] or token < 0
            logprob = own[at] if same else self._logprobs[at, token].item()
            top = list(zip(ids[at][:num], values[at][:num], strict=True))
            found[row] = RawLogprob(token, logprob, top)
        return found
