"""What one request costs: taken from its caller's limits at arrival, set right and written into
the usage ledger at its end."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from time import perf_counter

from starlette.requests import ClientDisconnect

from gateway.keys import ApiKey
from gateway.limits import RESERVED_TOKENS, Limiter
from gateway.prefix import prompt_tokens
from gateway.progress import Progress
from gateway.state import Arrival, Gateway
from protocol.errors import TriremeError
from protocol.generation import GenerateRequest
from trireme.service.ledger import UsageRow, timestamp
from trireme.service.ledger_writer import Ledger


class Usage:
    """Tokens of one client's request, over all its prompts and all workers that were asked.

    Attributes:
        prompts: what each prompt has come to. A finished one counts as its worker says; of one
            that was cut off count the prompt, once it was admitted, and the tokens that came.
        tokens: those of a call that gives no events; None while there is no answer.
        estimate: of such a call about what it came to, when a worker worked on it and nobody
            waited for the end.
    """

    def __init__(self) -> None:
        self.prompts: list[Progress] = []
        self.tokens: int | None = None
        self.estimate = 0
        self.error: str | None = None

    @property
    def totals(self) -> tuple[int, int, int, int]:
        """Tokens of the prompts, of these from a cache, of completions, of these reasoning."""
        prompt, cached, completion, reasoning = self.tokens or self.estimate, 0, 0, 0
        for progress in self.prompts:
            used = progress.tokens
            prompt += used.prompt_tokens
            cached += used.cached_tokens
            completion += used.completion_tokens
            reasoning += used.reasoning_tokens
        return prompt, cached, completion, reasoning

    @property
    def was_refused(self) -> bool:
        """Whether no worker has begun with it."""
        if self.error is None or self.tokens is not None or self.estimate:
            return False
        return not any(progress.started for progress in self.prompts)

    @property
    def outcome(self) -> str:
        """See `UsageRow`."""
        if self.error is not None:
            return self.error
        if self.tokens is not None:
            return "ok"
        if not self.prompts or not all(progress.done for progress in self.prompts):
            return "aborted"
        return "length" if any(one.was_cut for one in self.prompts) else "stop"


class Meter:
    """Of one client's request; whoever makes one calls `end`, once.

    Args:
        reserved: tokens that it may need.
        is_counted: whether it is written into the ledger.

    Raises:
        TriremeError: it is beyond its caller's limits.
    """

    def __init__(
        self, gateway: Gateway, arrival: Arrival, model: str, reserved: int, *, is_counted: bool
    ) -> None:
        self.usage = Usage()
        self._limiter: Limiter = gateway.limiter
        self._ledger: Ledger | None = gateway.ledger if is_counted else None
        self._arrival = arrival
        self._model = model
        self._reserved = reserved
        self._limiter.take(arrival.caller, reserved)

    def failed(self, error: BaseException) -> None:
        """There is no answer, or none further; a client that left is no failure."""
        if isinstance(error, TriremeError):
            self.usage.error = error.code
        elif isinstance(error, Exception) and not isinstance(error, ClientDisconnect):
            self.usage.error = "internal_error"

    def end(self) -> None:
        """Set the limits right and write the row."""
        usage, arrival = self.usage, self._arrival
        prompt, cached, completion, reasoning = usage.totals
        self._limiter.correct(arrival.caller, self._reserved, prompt + completion)
        if self._ledger is None or usage.was_refused:
            return
        duration_s = perf_counter() - arrival.arrived_s
        self._ledger.add(
            UsageRow(
                time=timestamp(time.time() - duration_s),
                request_id=arrival.request_id,
                gateway=_this_process(),
                key=arrival.caller.name,
                route=arrival.route,
                model=self._model,
                outcome=usage.outcome,
                prompt_tokens=prompt,
                cached_tokens=cached,
                completion_tokens=completion,
                reasoning_tokens=reasoning,
                attempts=arrival.trail.tries,
                duration_s=round(duration_s, 6),
            )
        )


@contextmanager
def metered(
    gateway: Gateway, arrival: Arrival, model: str, tokens: int = 0, *, is_counted: bool = True
) -> Iterator[Usage]:
    """Around a call that gives no events; the block says what was used.

    A caller who does not wait for the answer of a worker, or gave it too little time, has used
    what the call may need.

    Args:
        tokens: that it may need. is_counted: whether it is written into the ledger.

    Raises:
        TriremeError: it is beyond its caller's limits.
    """
    meter = Meter(gateway, arrival, model, tokens, is_counted=is_counted)
    try:
        yield meter.usage
    except Exception as error:
        meter.failed(error)
        raise
    finally:
        usage = meter.usage
        unwaited = usage.tokens is None and usage.error in (None, "deadline_exceeded")
        if unwaited and arrival.trail.tries:
            usage.estimate = tokens
        meter.end()


def may_need(key: ApiKey, request: GenerateRequest) -> int:
    """Tokens of the prompt, about, and of the longest answers that were asked for."""
    if not key.limits.tokens:
        return 0
    sampling = request.sampling
    each = RESERVED_TOKENS if sampling.max_tokens is None else sampling.max_tokens
    return prompt_tokens(request) + each * sampling.num_sequences


@cache
def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
