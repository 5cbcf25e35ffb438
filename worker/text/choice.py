"""One choice of a request: engine outputs in, `Delta` events out. Pure.

Detokenizes, finds stop strings, collects log probabilities, and keeps the stream interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.generation import CallPiece, Delta, FinishReason, TokenLogprob
from worker.engine.protocol import RawLogprob, StepOutput
from worker.text.reading import Parts, Reading
from worker.text.stops import Match, StopMatcher
from worker.text.tokenizer import Tokenizer

_LOWEST_LOGPROB = -9999.0  # JSON has no infinity


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How a choice's text is made; the fields are those of `SamplingParams`.

    Attributes:
        reported_stop_ids: stop tokens that show as `stop_reason` (end-of-sequence does not).
        interval: tokens between two deltas; the last comes at once.
        eager: whether the first comes at once too.
        context: the prompt's last ids, when the completion continues its text.
        reading: how reasoning and calls are told from the answer; None takes all for the answer.
    """

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    min_tokens: int = 0
    skip_special_tokens: bool = True
    reported_stop_ids: frozenset[int] = frozenset()
    interval: int = 1
    eager: bool = True
    context: tuple[int, ...] = ()
    reading: Reading | None = None


class Choice:
    """State of one choice.

    Attributes:
        num_tokens: tokens so far, those held back by the interval included.
        finish: why it ended, None while it runs.
        stopped_by_text: its text ended it, so the engine has to be told.
        reasoning_tokens: those of its tokens that were reasoning.
    """

    def __init__(self, index: int, tokenizer: Tokenizer, options: TextOptions) -> None:
        self.num_tokens = 0
        self.finish: FinishReason | None = None
        self.stopped_by_text = False
        self.reasoning_tokens = 0
        self._index = index
        self._tokenizer = tokenizer
        self._options = options
        reading = options.reading
        self._reader = reading.make() if reading else None
        marked = reading is not None and reading.hidden_ids is not None
        skip = options.skip_special_tokens
        self._hidden_ids = reading.hidden_ids if reading and skip else None
        self._stream = tokenizer.stream(
            skip_special_tokens=skip and not marked, context=options.context
        )
        self._matcher = StopMatcher(options.stops, include_stop=options.include_stop)
        self._stop_reason: int | str | None = None
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[CallPiece] = []
        self._logprobs: list[TokenLogprob] | None = None

    def feed(self, output: StepOutput) -> Delta | None:
        """The delta that is due after this output; None while the interval holds it back.

        Outputs behind the end of the choice are dropped.
        """
        if self.finish is not None:
            return None
        due = self._options.eager and self.num_tokens == 0
        # the token that ended the choice is no text, unless that was asked for
        hidden = output.stop_token is not None and not self._options.include_stop
        shown = len(output.ids) - hidden
        for i, token_id in enumerate(output.ids):
            self.num_tokens += 1
            self._ids.append(token_id)
            if output.logprobs:
                self._take_logprob(output.logprobs[i])
            if i < shown:
                self._read(token_id)
            if self.finish is not None:
                break
        if output.finish is not None and self.finish is None:
            self._end(output)
        due = due or self.finish is not None or len(self._ids) >= self._options.interval
        return self._delta() if due else None

    def replay(self, ids: Sequence[int], *, ended: bool) -> None:
        """Take tokens whose deltas were given before, by another worker.

        Raises:
            ValueError: they had ended the choice, though it is said to go on.
        """
        if ids:
            self.feed(StepOutput(self._index, 0, list(ids)))
        if self.finish is not None and not ended:
            raise ValueError("these tokens had ended the choice")
        self._clear()
        if ended:
            self.finish = self.finish or "stop"

    def _take_logprob(self, logprob: RawLogprob) -> None:
        self._logprobs = self._logprobs or []
        self._logprobs.append(readable(logprob, self._tokenizer))

    def _read(self, token_id: int) -> None:
        reader = self._reader
        if reader is None:
            self._show(self._stream.step(token_id))
            return
        was_reasoning = reader.reasoning
        if self._hidden_ids is None or token_id not in self._hidden_ids:
            self._show(self._stream.step(token_id))
        self.reasoning_tokens += was_reasoning or reader.reasoning

    def _show(self, piece: str) -> None:
        if self.num_tokens >= self._options.min_tokens:
            found = self._matcher.feed(piece)
            if isinstance(found, Match):
                piece = found.text
                self.finish, self._stop_reason = "stop", found.stop
                self.stopped_by_text = True
            else:
                piece = found
        self._take(piece)

    def _take(self, text: str) -> None:
        """Text that is certain, which the reader takes apart."""
        reader = self._reader
        if reader is None:
            self._texts.append(text)
            return
        self._add(reader.feed(text))
        if reader.full and self.finish is None:
            self.finish, self.stopped_by_text = "stop", True

    def _add(self, parts: Parts) -> None:
        self._texts.append(parts.text)
        self._reasoning.append(parts.reasoning)
        self._calls += parts.calls

    def _end(self, output: StepOutput) -> None:
        self._show(self._stream.finish())
        if self.finish is None:
            self._take(self._matcher.flush())
        if self.finish is None:
            self.finish = output.finish
            if output.stop_token in self._options.reported_stop_ids:
                self._stop_reason = output.stop_token

    def _delta(self) -> Delta:
        if self.finish is not None and self._reader is not None:
            self._add(self._reader.finish())
        delta = Delta(
            index=self._index,
            pos=self.num_tokens - len(self._ids),
            ids=self._ids,
            text="".join(self._texts),
            logprobs=self._logprobs,
            finish_reason=self.finish,
            stop_reason=self._stop_reason,
            reasoning="".join(self._reasoning),
            calls=self._calls or None,
        )
        self._clear()
        return delta

    def _clear(self) -> None:
        self._ids, self._texts, self._logprobs = [], [], None
        self._reasoning, self._calls = [], []


def readable(raw: RawLogprob, tokenizer: Tokenizer) -> TokenLogprob:
    """A log probability with the token's text and bytes beside the id."""

    def one(token_id: int, logprob: float | None, top: Sequence[TokenLogprob]) -> TokenLogprob:
        text, data = tokenizer.token(token_id)
        finite = None if logprob is None else max(logprob, _LOWEST_LOGPROB)
        return TokenLogprob(token_id, text, list(data), finite, list(top))

    return one(raw.token_id, raw.logprob, [one(other, lp, ()) for other, lp in raw.top])
