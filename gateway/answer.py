"""One request's answer, whole or streamed, from the same events by the same renderer."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, MutableMapping, Sequence
from time import perf_counter
from typing import Any, Final, Protocol

from fastapi import Request, Response

from gateway.connection import event_stream
from gateway.dispatch import Batch
from gateway.merge import merged
from gateway.metering import Meter, may_need
from gateway.metrics import GatewayMetrics
from gateway.progress import Progress
from gateway.state import Arrival, gateway_of
from protocol.errors import TriremeError
from protocol.generation import Delta, Event, GenerateRequest, Started
from trireme.service.catch_all import fault
from trireme.service.streaming import Leash

log = logging.getLogger(__name__)

AT_ONCE: Final = 32
"""Prompts of one request that run at the same time."""


class AnswerRenderer(Protocol):
    """Makes one dialect's answer of events: whole by `add` and `answer`, streamed by the rest."""

    def add(self, prompt: int, event: Event) -> None:
        """Take an event of the prompt of that number."""

    def answer(self) -> bytes:
        """The whole answer as JSON, once all events were given."""

    def chunks(self, prompt: int, event: Event) -> list[bytes]:
        """The server-sent events of an event; some have none."""

    def end(self) -> bytes:
        """What follows the last event of a stream."""

    def failure(self, error: TriremeError) -> bytes:
        """What ends a stream that failed."""


async def respond(
    request: Request,
    requests: Sequence[GenerateRequest],
    renderer: AnswerRenderer,
    arrival: Arrival,
    *,
    stream: bool,
) -> Response:
    """The answer to one client request that became these requests to workers.

    Raises:
        TriremeError: nothing was sent yet, so it decides the status.
        ClientDisconnect: the client went away; the workers were told to stop.
    """
    gateway, model = gateway_of(request), requests[0].model
    reserved = sum(may_need(arrival.caller, one) for one in requests)
    meter = Meter(gateway, arrival, model, reserved, is_counted=True)
    prompts = [Progress(_by(arrival.tenant, one), at) for at, one in enumerate(requests)]
    meter.usage.prompts = prompts
    generate = gateway.dispatcher.generate
    batches = merged([generate(one, arrival.trail) for one in prompts], AT_ONCE)
    state = request.scope["state"]
    answer = Answer(batches, renderer, gateway.metrics, meter, model, arrival.arrived_s, state)
    try:
        async with Leash(request.scope):
            if stream:
                await answer.open(min(len(requests), AT_ONCE))
            body = b"" if stream else await answer.whole()
    except BaseException as error:
        await answer.close(error)
        raise
    if stream:
        return event_stream(answer.frames(), answer.close)
    await answer.close()
    return Response(body, media_type="application/json")


def _by(tenant: str, request: GenerateRequest) -> GenerateRequest:
    """The request with the name of who asks for it."""
    return request.model_copy(update={"tenant": tenant}) if tenant else request


class Answer:
    """Events on their way to a client. Whoever makes one awaits `close`, once.

    Args:
        state: gets the `error_code` of a stream that breaks.
    """

    def __init__(
        self,
        batches: AsyncGenerator[Batch, None],
        renderer: AnswerRenderer,
        metrics: GatewayMetrics,
        meter: Meter,
        model: str,
        arrived_s: float,
        state: MutableMapping[str, Any],
    ) -> None:
        self._state = state
        self._batches = batches
        self._renderer = renderer
        self._metrics = metrics
        self._meter = meter
        self._model = model
        self._times = metrics.tokens(model, arrived_s)
        self._opening: list[Batch] = []
        metrics.running += 1

    async def open(self, prompts: int) -> None:
        """Wait until so many prompts are admitted; what comes before that is kept."""
        admitted: set[int] = set()
        while len(admitted) < prompts:
            number, events = await anext(self._batches)
            self._opening.append((number, events))
            if any(isinstance(event, Started) for event in events):
                admitted.add(number)

    async def whole(self) -> bytes:
        """The fold of all events, as JSON."""
        async for number, events in self._batches:
            for event in events:
                self._renderer.add(number, event)
        return self._renderer.answer()

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events; a failure ends them with an error event instead of their end.

        Events that came together are sent together.
        """
        try:
            for number, events in self._opening:
                if piece := self._piece(number, events):
                    yield piece
            async for number, events in self._batches:
                if piece := self._piece(number, events):
                    yield piece
        except TriremeError as error:
            yield self._broken(error)
            return
        except Exception:
            log.exception("stream failed")
            yield self._broken(fault("gateway"))
            return
        yield self._renderer.end()

    async def close(self, error: BaseException | None = None) -> None:
        """Stop the workers if they are not done, and release what the request holds.

        Args:
            error: why there is no answer.
        """
        if error is not None:
            self._meter.failed(error)
        try:
            await self._batches.aclose()
        finally:
            self._metrics.running -= 1
            self._meter.end()

    def _broken(self, error: TriremeError) -> bytes:
        self._meter.failed(error)
        self._metrics.broke(self._model, error.code)
        self._state["error_code"] = error.code
        return self._renderer.failure(error)

    def _piece(self, number: int, events: list[Event]) -> bytes:
        self._observe(events)
        return b"".join([f for event in events for f in self._renderer.chunks(number, event)])

    def _observe(self, events: list[Event]) -> None:
        deltas = sum([isinstance(event, Delta) for event in events])
        if deltas:
            self._times.deltas(deltas, perf_counter())
