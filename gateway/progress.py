"""What a request has given so far, and what another worker needs to go on from there. Pure.

A stream must have no gap: the position of every delta is checked. When its worker is lost, the
next one gets the tokens that were passed on, and begins behind them; see docs/architecture.md.
"""

from __future__ import annotations

from dataclasses import replace

from protocol.errors import TriremeError
from protocol.fleet import ModelRecord
from protocol.generation import (
    Begun,
    Delta,
    Done,
    Event,
    Failed,
    GenerateRequest,
    Prompt,
    Started,
)


class Progress:
    """Of one request, over all the workers that serve it.

    Attributes:
        request: as it came.
        number: of the prompt, among those of one client's request.
        fault: why nothing follows the events that were given, when that is a failure of the worker.
        done: whether `Done` was among them.
        delivered: whether anything that belongs to the answer was given.
        was_cut: whether a limit of tokens ended one of the choices.
    """

    def __init__(self, request: GenerateRequest, number: int = 0) -> None:
        self.request = request
        self.number = number
        self.fault: TriremeError | None = None
        self.done = False
        self.delivered = False
        self.was_cut = False
        self._total: Done | None = None
        self._started: Started | None = None
        self._ids: dict[int, list[int]] = {}
        self._ended: set[int] = set()
        self._begun = "", 0
        self._generated = 0
        self._prompt_told = 0
        self._prompt_seen = 0

    def can_go_on(self, record: ModelRecord | None) -> bool:
        """Whether a worker that serves the model so could take its place in the answer.

        With another context the answer would end elsewhere.
        """
        if not self.delivered:
            return True
        return record is not None and (record.digest, record.context_length) == self._begun

    def begin(self, record: ModelRecord | None) -> None:
        """The worker that is asked now serves the model so."""
        if not self.delivered and record is not None:
            self._begun = record.digest, record.context_length

    @property
    def num_tokens(self) -> int:
        """Completion tokens so far."""
        return sum(map(len, self._ids.values()))

    @property
    def started(self) -> bool:
        """Whether a worker has admitted it."""
        return self._started is not None

    @property
    def tokens(self) -> Done:
        """What it comes to: as its last worker says, or what there is of it so far."""
        if self._total is not None:
            return self._total
        prompt_tokens = self._started.prompt_tokens if self._started else 0
        return Done(prompt_tokens, max(self.num_tokens, self._generated))

    @property
    def resumable(self) -> bool:
        """Whether another worker could go on: not where the best of several are told at the end."""
        sampling = self.request.sampling
        return sampling.num_sequences == sampling.n and not sampling.use_beam_search

    def attempt(self) -> GenerateRequest:
        """The request as the next worker gets it."""
        request = self.request
        self.fault, self._prompt_seen, self._generated = None, 0, 0
        started = self._started
        if started is None:
            return request
        if not self.delivered:
            return request.model_copy(update={"admitted": True})
        # what was told of the prompt and of the tokens goes with this seed
        sampling = request.sampling.model_copy(update={"seed": started.seed})
        resume = None
        if self.num_tokens:
            resume = [
                Begun(ids=self._ids.get(index, []), ended=index in self._ended)
                for index in range(sampling.n)
            ]
        return request.model_copy(update={"sampling": sampling, "resume": resume, "admitted": True})

    def take(self, events: list[Event]) -> list[Event]:
        """Those of a worker's events that are to be passed on."""
        passed: list[Event] = []
        for event in events:
            if isinstance(event, Delta):
                known = self._ids.setdefault(event.index, [])
                if event.pos != len(known):
                    self.fault = TriremeError("worker_lost", "The worker's answer has a gap.")
                    break
                known += event.ids
                self._generated = event.generated or self._generated
                # one with nothing in it is a sign of life
                self.delivered = self.delivered or bool(event.ids or event.text)
                if event.finish_reason is not None:
                    self._ended.add(event.index)
                    self.was_cut = self.was_cut or event.finish_reason == "length"
                passed.append(event)
            elif isinstance(event, Started):
                # until something was told, it is the last one's word that counts
                if not self.delivered:
                    self._started = event
                    passed.append(event)
            elif isinstance(event, Prompt):
                if (rest := self._untold(event)) is not None:
                    self.delivered = True
                    passed.append(rest)
            elif isinstance(event, Failed):
                self.fault = event.error()
                break
            elif isinstance(event, Done):
                self.done, self._total = True, event
                passed.append(event)
                break
        return passed

    def _untold(self, event: Prompt) -> Prompt | None:
        """The part of a prompt's piece that was not given before."""
        first, self._prompt_seen = self._prompt_seen, self._prompt_seen + len(event.ids)
        known = self._prompt_told - first
        self._prompt_told = max(self._prompt_told, self._prompt_seen)
        if known <= 0:
            return event
        if known >= len(event.ids):
            return None
        scores = event.logprobs[known:] if event.logprobs is not None else None
        return replace(event, ids=event.ids[known:], text="", logprobs=scores)
