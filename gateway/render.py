"""Events become OpenAI's chunks, or by their fold one answer. Pure; the same rules for both.

A renderer is made for one request. `chunks` gives the frames of an event; `answer` is the whole
answer once all events were given to `add`. Choice `p * n + i` is choice i of prompt p.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple

import orjson

from gateway.errors import error_body
from gateway.logprobs import LegacyLogprobs, joined, prompt_logprobs
from protocol.errors import TriremeError
from protocol.framing import SSE_DONE, sse
from protocol.generation import CallPiece, Delta, Done, Event, FinishReason, Prompt, Started
from protocol.openai import StreamOptions

_NO_OPTIONS: Final = StreamOptions()
_MARK: Final = "\ue000 the text \ue000"
"""A text that is nothing else in a frame."""


class AnswerHead(NamedTuple):
    """What an answer and each of its frames begin with.

    Attributes:
        id: of the whole answer, such as `chatcmpl-…`.
        created: unix seconds.
        n: choices a prompt.
        prompts: how many prompts there are.
    """

    id: str
    created: int
    model: str
    n: int = 1
    prompts: int = 1


@dataclass(slots=True)
class _Choice:
    """The fold of one choice."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[CallPiece] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def all_logprobs(self) -> dict[str, Any] | None:
        return joined(self.logprobs) if self.logprobs else None


class Renderer(ABC):
    """What chat and completions have in common.

    Args:
        options: the request's `stream_options`.
        prompt_logprobs: whether the answer shows those.
        as_ids: whether tokens are named `token_id:<id>`.
    """

    object_name: ClassVar[str]
    chunk_name: ClassVar[str]

    def __init__(
        self,
        head: AnswerHead,
        *,
        options: StreamOptions | None = None,
        prompt_logprobs: bool = False,
        as_ids: bool = False,
    ) -> None:
        self._head = head
        self._options = options or _NO_OPTIONS
        self._shows_prompt_logprobs = prompt_logprobs
        self._as_ids = as_ids
        self._fingerprint: str | None = None
        self._started: dict[int, int] = {}
        self._done: dict[int, Done] = {}
        self._generated = 0
        self._shows_usage_so_far = (
            self._options.continuous_usage_stats and self._options.include_usage
        )
        self._around: dict[int, tuple[bytes, bytes]] = {}
        self._choices = [_Choice() for _ in range(head.n * head.prompts)]

    # ---- the fold -------------------------------------------------------------------------------

    def add(self, prompt: int, event: Event) -> None:
        """Take an event of the prompt of that number."""
        self._note(prompt, event)
        if isinstance(event, Prompt):
            shown = prompt_logprobs(event.logprobs or []) if self._shows_prompt_logprobs else []
            for index in self._indexes(prompt):
                choice = self._choices[index]
                for text, logprobs in self._echo_pieces(index, event):
                    choice.texts.append(text)
                    choice.logprobs += [logprobs] if logprobs else []
                if self._shows_prompt_logprobs:
                    choice.prompt_logprobs = choice.prompt_logprobs or []
                    choice.prompt_logprobs += shown
        elif isinstance(event, Delta):
            index = prompt * self._head.n + event.index
            choice = self._choices[index]
            choice.texts.append(event.text)
            if event.reasoning:
                choice.reasoning.append(event.reasoning)
            if event.calls:
                choice.calls += event.calls
            if event.logprobs is not None:
                choice.logprobs.append(self._logprobs(index, event))
            choice.finish_reason = event.finish_reason or choice.finish_reason

    @abstractmethod
    def answer(self) -> bytes:
        """The whole answer as JSON.

        No model of `protocol.openai` checks it: 100,000 log probabilities would hold the event
        loop up for half a second. The tests do.
        """

    # ---- the stream -----------------------------------------------------------------------------

    def chunks(self, prompt: int, event: Event) -> list[bytes]:
        """The server-sent events of an event; some have none."""
        opened = prompt in self._started
        self._note(prompt, event)
        if isinstance(event, Delta):
            index = prompt * self._head.n + event.index
            if event.is_plain:
                return [self._text_frame(index, event.text)] if event.text else []
            logprobs = self._logprobs(index, event) if event.logprobs else None
            return [self._frame(piece) for piece in self._pieces(index, event, logprobs)]
        if isinstance(event, Started):
            return (
                []
                if opened
                else [
                    self._frame(choice)
                    for index in self._indexes(prompt)
                    for choice in self._openings(index)
                ]
            )
        if isinstance(event, Prompt):
            return [
                self._frame(self._piece(index, text, logprobs, None))
                for index in self._indexes(prompt)
                for text, logprobs in self._echo_pieces(index, event)
            ]
        return []

    def last_chunk(self) -> bytes | None:
        """The frame with the usage, when it was asked for."""
        if not self._options.include_usage:
            return None
        return sse(
            orjson.dumps({**self._base(self.chunk_name), "choices": [], "usage": self.usage})
        )

    def end(self) -> bytes:
        """What follows the last event of a stream."""
        return (self.last_chunk() or b"") + SSE_DONE

    def failure(self, error: TriremeError) -> bytes:
        """What ends a stream that failed; neither a finish nor `[DONE]` comes."""
        return sse(orjson.dumps(error_body(error)))

    # ---- what both need -------------------------------------------------------------------------

    @property
    def usage(self) -> dict[str, Any]:
        """So far: a prompt counts once, however many choices it has."""
        prompt_tokens = sum(self._started.values())
        completion_tokens = self._generated
        if len(self._done) == self._head.prompts:
            prompt_tokens = sum(done.prompt_tokens for done in self._done.values())
            completion_tokens = sum(done.completion_tokens for done in self._done.values())
        return {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "completion_tokens": completion_tokens,
            "prompt_tokens_details": {
                "cached_tokens": sum(done.cached_tokens for done in self._done.values())
            },
            "completion_tokens_details": {
                "reasoning_tokens": sum(done.reasoning_tokens for done in self._done.values())
            },
        }

    def _note(self, prompt: int, event: Event) -> None:
        if isinstance(event, Delta):
            self._generated += len(event.ids)
        elif isinstance(event, Started):
            self._started[prompt] = event.prompt_tokens
            if event.digest:
                self._fingerprint = "fp_" + event.digest[:12]
                self._around.clear()
        elif isinstance(event, Done):
            self._done[prompt] = event

    def _indexes(self, prompt: int) -> range:
        return range(prompt * self._head.n, (prompt + 1) * self._head.n)

    def _base(self, name: str) -> dict[str, Any]:
        head = self._head
        return {
            "id": head.id,
            "object": name,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": self._fingerprint,
        }

    def _frame(self, choice: Mapping[str, Any]) -> bytes:
        frame = {**self._base(self.chunk_name), "choices": [choice]}
        if self._shows_usage_so_far:
            frame["usage"] = self.usage
        elif self._options.include_usage:
            frame["usage"] = None
        return sse(orjson.dumps(frame))

    def _text_frame(self, index: int, text: str) -> bytes:
        """The frame of a text alone: nearly all are of this form, so only the text is written anew.

        The rest is cut from a frame that was made by the rules, with a mark for its text.
        """
        if self._shows_usage_so_far:
            return self._frame(self._piece(index, text, None, None))
        around = self._around.get(index)
        if around is None:
            before, _, after = self._frame(self._piece(index, _MARK, None, None)).partition(
                orjson.dumps(_MARK)
            )
            around = self._around[index] = before, after
        return around[0] + orjson.dumps(text) + around[1]

    @abstractmethod
    def _openings(self, index: int) -> list[dict[str, Any]]:
        """The choice's frames before any token."""

    @abstractmethod
    def _echo_pieces(self, index: int, event: Prompt) -> list[tuple[str, dict[str, Any] | None]]:
        """What the prompt adds to a choice: (text, log probabilities)."""

    def _pieces(
        self, index: int, event: Delta, logprobs: dict[str, Any] | None
    ) -> list[dict[str, Any]]:
        """The choice of each frame of a delta; the last one has the finish."""
        return [self._piece(index, event.text, logprobs, event.finish_reason)]

    @abstractmethod
    def _piece(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None,
        finish_reason: FinishReason | None,
    ) -> dict[str, Any]:
        """A choice of a frame."""

    @abstractmethod
    def _logprobs(self, index: int, event: Delta) -> dict[str, Any]:
        """The log probabilities of a delta, which has some."""


class CompletionRenderer(Renderer):
    """/v1/completions.

    Args:
        echo: put the prompt before each choice.
        logprobs: whether choices show log probabilities.
    """

    object_name = "text_completion"
    chunk_name = "text_completion"

    def __init__(
        self, head: AnswerHead, *, echo: bool = False, logprobs: bool = False, **options: Any
    ) -> None:
        super().__init__(head, **options)
        self._echo = echo
        self._shows_logprobs = logprobs
        self._arrays: defaultdict[int, LegacyLogprobs] = defaultdict(
            lambda: LegacyLogprobs(as_ids=self._as_ids)
        )

    def answer(self) -> bytes:
        choices = []
        for index, choice in enumerate(self._choices):
            fields = self._piece(index, choice.text, choice.all_logprobs, choice.finish_reason)
            if self._shows_prompt_logprobs:
                fields["prompt_logprobs"] = choice.prompt_logprobs
            choices.append(fields)
        answer = {**self._base(self.object_name), "choices": choices, "usage": self.usage}
        return orjson.dumps(answer)

    def _openings(self, index: int) -> list[dict[str, Any]]:
        return []

    def _echo_pieces(self, index: int, event: Prompt) -> list[tuple[str, dict[str, Any] | None]]:
        if not self._echo:
            return []
        arrays = None
        if event.logprobs and self._shows_logprobs:
            arrays = self._arrays[index].arrays(event.logprobs)
        else:
            self._arrays[index].skip(event.text)
        return [(event.text, arrays)]

    def _piece(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None,
        finish_reason: FinishReason | None,
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }

    def _logprobs(self, index: int, event: Delta) -> dict[str, Any]:
        return self._arrays[index].arrays(event.logprobs or [])
