"""One request's answer, whole or streamed, from the same events by the same renderer."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from time import perf_counter
from typing import Final

import orjson
from fastapi import Request, Response

from gateway.connection import EventStream, while_connected
from gateway.errors import error_body
from gateway.merge import merged
from gateway.metrics import GatewayMetrics
from gateway.render import Renderer
from gateway.state import Arrival, gateway_of
from protocol.errors import TriremeError
from protocol.framing import SSE_DONE, sse
from protocol.generation import Delta, Event, GenerateRequest, Started

log = logging.getLogger(__name__)

AT_ONCE: Final = 32
"""Prompts of one request that run at the same time."""


async def respond(
    request: Request,
    requests: Sequence[GenerateRequest],
    renderer: Renderer,
    arrival: Arrival,
    *,
    stream: bool,
) -> Response:
    """The answer to one client request that became these requests to workers.

    Raises:
        TriremeError: nothing was sent yet, so it decides the status.
        ClientDisconnect: the client went away; the workers were told to stop.
    """
    gateway = gateway_of(request)
    events = merged([gateway.dispatcher.generate(one) for one in requests], AT_ONCE)
    answer = Answer(events, renderer, gateway.metrics, requests[0].model, arrival.arrived_s)
    if not stream:
        try:
            body = await while_connected(request, answer.whole())
        finally:
            await answer.close()
        return Response(body, media_type="application/json")
    try:
        await while_connected(request, answer.open(min(len(requests), AT_ONCE)))
    except BaseException:
        await answer.close()
        raise
    return EventStream(answer.frames(), answer.close)


class Answer:
    """Events on their way to a client. Whoever makes one awaits `close`, once."""

    def __init__(
        self,
        events: AsyncGenerator[tuple[int, Event], None],
        renderer: Renderer,
        metrics: GatewayMetrics,
        model: str,
        arrived_s: float,
    ) -> None:
        self._events = events
        self._renderer = renderer
        self._metrics = metrics
        self._model = model
        self._times = metrics.tokens(model, arrived_s)
        self._opening: list[tuple[int, Event]] = []
        metrics.running.inc()

    async def open(self, prompts: int) -> None:
        """Wait until so many prompts are admitted; what comes before that is kept."""
        while prompts:
            number, event = await anext(self._events)
            self._opening.append((number, event))
            prompts -= isinstance(event, Started)

    async def whole(self) -> bytes:
        """The fold of all events, as JSON."""
        async for number, event in self._events:
            self._observe(event)
            self._renderer.add(number, event)
        return self._renderer.answer()

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events, `[DONE]` last; a failure ends them with an error event instead."""
        try:
            for number, event in self._opening:
                self._observe(event)
                for frame in self._renderer.chunks(number, event):
                    yield frame
            async for number, event in self._events:
                self._observe(event)
                for frame in self._renderer.chunks(number, event):
                    yield frame
        except TriremeError as error:
            self._metrics.broke(self._model, error.code)
            yield sse(orjson.dumps(error_body(error)))
            return
        except Exception:
            log.exception("stream failed")
            fault = TriremeError("internal_error", "The gateway failed; its log has the reason.")
            self._metrics.broke(self._model, fault.code)
            yield sse(orjson.dumps(error_body(fault)))
            return
        last = self._renderer.last_chunk()
        if last is not None:
            yield last
        yield SSE_DONE

    async def close(self) -> None:
        """Stop the workers if they are not done, and release what the request holds."""
        try:
            await self._events.aclose()
        finally:
            self._metrics.running.dec()

    def _observe(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._times.delta(perf_counter())
