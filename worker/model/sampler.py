"""Chooses the next token of each row of a batch, each by its own parameters.

A row's noise is one uniform number made from (seed, choice, position) by a counter-based hash, and
the token is found by inverting the distribution there. So a row's token depends on its logits and
parameters alone: not on its batch mates, not on when or where it resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from worker.engine.beams import Candidates, num_candidates
from worker.engine.protocol import RawLogprob
from worker.engine.sequence import Sequence
from worker.model.pick_torch import TorchPick
from worker.model.transfer import Fetch, rows_of, to_device


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


class Picked(Protocol):
    """Tokens chosen for some rows.

    Attributes:
        tokens: [rows], int64, on the device; -1 where it takes `wider`.
        finite: [rows], whether all logits of a row are numbers. Of one that are not any token of
            the vocabulary may have been chosen.
    """

    @property
    def tokens(self) -> torch.Tensor: ...

    @property
    def finite(self) -> torch.Tensor: ...

    def wider(self, rows: set[int]) -> dict[int, int]:
        """Of those of these rows whose token is -1, the tokens; waits for the device."""


Pick: TypeAlias = Callable[[torch.Tensor, torch.Tensor, SequenceOf[Sequence]], Picked]
"""Chooses from logits [rows, vocab], the same with penalties and bans, and the rows' sequences."""


class Draw:
    """One token for each row of a batch, chosen on the device and not yet waited for.

    Attributes:
        tokens: [rows], int64, on the device. `choices` replaces a token where ranking the likeliest
            ones was not enough to choose it, which is rare, and says so in `Choice.late`.

    Args:
        logits: [rows, vocab], any float dtype; not read any more once this is made.
        seqs: the rows' sequences; only read, and only now.
        pick: how tokens are chosen.
    """

    def __init__(
        self, logits: torch.Tensor, seqs: SequenceOf[Sequence], pick: Pick = TorchPick
    ) -> None:
        self._picked = pick(logits, _shape(logits, seqs), seqs)
        self.tokens = self._picked.tokens.clamp(min=0)
        self._found = Fetch(torch.stack([self._picked.tokens, self._picked.finite.long()]))
        self._beams = _Beams(logits, seqs)
        nums = [None if seq.is_beam else seq.params.logprobs for seq in seqs]
        self._raw = _RawLogprobs(logits, self.tokens, nums)

    def choices(self) -> list[Choice]:
        """The tokens on the host; waits for the device, but not for what was queued since."""
        tokens, finite = self._found.read()
        late = {row for row, token in enumerate(tokens) if token < 0 and finite[row]}
        for row, token in self._picked.wider(late).items():
            tokens[row] = token
        raw = self._raw.read(tokens)
        beams = self._beams.read()
        return [
            Choice(token, raw.get(row), late=row in late, candidates=beams.get(row))
            if finite[row]
            else Choice(None)
            for row, token in enumerate(tokens)
        ]


def sample(
    logits: torch.Tensor, seqs: SequenceOf[Sequence], pick: Pick = TorchPick
) -> list[Choice]:
    """One token a row, waited for.

    Args:
        logits: [rows, vocab], any float dtype.
        seqs: the rows' sequences; only read.
        pick: how tokens are chosen.
    """
    return Draw(logits, seqs, pick).choices()


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
    found = _RawLogprobs(logits, ids, [num_top] * len(targets)).read(targets)
    return [found[row] for row in range(len(targets))]


def _shape(logits: torch.Tensor, seqs: SequenceOf[Sequence]) -> torch.Tensor:
    """Penalties, bias and forbidden tokens: what changes the greedy choice too."""
    rows = [row for row, seq in enumerate(seqs) if _needs_shaping(seq)]
    if not rows:
        return logits
    logits = logits.to(torch.float32, copy=True)
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


class _Beams:
    """The candidates of those rows that are beams.

    Penalties, bias and forbidden tokens change log probabilities here, not logits, as in the beam
    search of transformers.

    Args:
        logits: [rows, vocab].
        seqs: the rows' sequences.
    """

    def __init__(self, logits: torch.Tensor, seqs: SequenceOf[Sequence]) -> None:
        self._beams = [(row, seq.params) for row, seq in enumerate(seqs) if seq.is_beam]
        if not self._beams:
            return
        rows = [row for row, _params in self._beams]
        logprobs = rows_of(logits, rows).float().log_softmax(-1)
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
        logits: [rows, vocab].
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
        self._logprobs = rows_of(logits, rows).float().log_softmax(-1)
        self._supposed = Fetch(rows_of(tokens, rows))
        self._own = Fetch(self._logprobs.gather(1, rows_of(tokens, rows)[:, None])[:, 0])
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
