"""One request, one stream: chooses a worker, opens the stream, goes on elsewhere when it fails.

A retryable failure goes to the next candidate. Once a `Prompt` or `Delta` was passed on, that one
goes on from there: it must serve the same model, by its digest, and gets the tokens so far.
Whatever was acquired is released in `finally`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from random import Random
from time import monotonic
from typing import Final, Self, TypeAlias, TypeVar

from pydantic import BaseModel

from gateway.breaker import Breaker, Breakers
from gateway.candidates import Sieve, left_out
from gateway.drift import DriftWatch
from gateway.fastchat_client import needs_native
from gateway.fleet_view import FleetView
from gateway.metrics import GatewayMetrics
from gateway.prefix import Fingerprint, PrefixIndex, fingerprint, prompt_tokens
from gateway.progress import Progress
from gateway.retries import Retries, RetryBudget, again, no_worker, too_late
from gateway.routing import Decision, Group, InFlight, Policy, Query, reported_tokens
from gateway.trail import Attempt, Out, Trail
from gateway.worker_client import Question, WorkerClient
from protocol.errors import TriremeError, quoted
from protocol.fleet import Capability, WorkerRecord
from protocol.generation import (
    Done,
    EmbedRequest,
    EmbedResponse,
    Event,
    GenerateRequest,
    ScoreRequest,
    Started,
    TokenizeRequest,
)

log = logging.getLogger(__name__)

_TRANSPORT_FAILURES: Final = frozenset(
    "worker_unreachable worker_lost worker_timeout engine_dead engine_unavailable".split()
)
_Answer = TypeVar("_Answer")
_Model = TypeVar("_Model", bound=BaseModel)
Batch: TypeAlias = tuple[int, list[Event]]
"""Events that came together, of the prompt of that number."""


class Dispatcher:
    """Sends requests to workers of the fleet.

    Args:
        clients: by the wire that a worker speaks.
        policy: orders the candidates.
        rng: its randomness.
        restart_wait_s: how long a request that lost its worker's engine waits for the next one,
            when no other worker can go on.
    """

    def __init__(
        self,
        view: FleetView,
        clients: Mapping[str, WorkerClient],
        policy: Policy,
        metrics: GatewayMetrics,
        *,
        breakers: Breakers,
        drift: DriftWatch,
        rng: Random,
        restart_wait_s: float = 30.0,
    ) -> None:
        self.in_flight = InFlight()
        self._view = view
        self._clients = clients
        self._policy = policy
        self._metrics = metrics
        self._breakers = breakers
        self._drift = drift
        self._rng = rng
        self._restart_wait_s = restart_wait_s
        self._waiting: set[asyncio.Future[None]] = set()
        self._over: TriremeError | None = None
        self._prefixes = PrefixIndex()
        self._groups: dict[tuple[str, Capability | None], tuple[Group, Sequence[Out]]] = {}
        self._groups_of = view.snapshot
        self._budget = RetryBudget()

    def fleet_changed(self) -> None:
        """The view has another snapshot: whoever waits for a worker looks again."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def check_model(self, model: str) -> None:
        """Raises `model_not_found`, or `no_worker` for a known model that nobody serves now."""
        snapshot = self._view.snapshot
        if snapshot.serving(model):
            return
        if snapshot.synced and not self._view.knows(model, monotonic()):
            raise not_found(model)
        raise no_worker(model)

    def generate(
        self, progress: Progress, trail: Trail | None = None
    ) -> AsyncGenerator[Batch, None]:
        """Events as they come together, `Started` first, `Done` last.

        Close it to abort the request on its worker. `progress` tells at any time what it has come
        to.

        Args:
            trail: where the attempts are noted.

        Raises:
            TriremeError: instead of a `Failed` event, by the generator.
        """
        request, noted = progress.request, trail or Trail()
        return self._attempts(progress, fingerprint(request), prompt_tokens(request), noted)

    async def embed(
        self, request: EmbedRequest, timeout_s: float, trail: Trail | None = None
    ) -> EmbedResponse:
        """Vectors from any worker that can; goes to the next when one fails."""

        async def ask(worker: WorkerRecord, left_s: float, request_id: str) -> EmbedResponse:
            told = {**self._account(worker, request.model), "request_id": request_id}
            fenced = request.model_copy(update=told)
            with self._drift.request(worker):
                return await self._clients[worker.wire].embed(worker, fenced, left_s)

        tokens = sum(1 + len(one) // 4 for one in request.inputs)
        return await self._call(request.model, tokens, "embeddings", timeout_s, ask, trail)

    async def count(
        self, request: TokenizeRequest, timeout_s: float, trail: Trail | None = None
    ) -> tuple[int, int]:
        """(tokens of the prompt, context length of the model)."""

        async def ask(worker: WorkerRecord, left_s: float, _request_id: str) -> tuple[int, int]:
            fenced = request.model_copy(update=_fence(worker, request.model))
            return await self._clients[worker.wire].count(worker, fenced, left_s)

        return await self._call(request.model, 1, None, timeout_s, ask, trail)

    async def ask(
        self,
        request: Question,
        answer: type[_Model],
        timeout_s: float,
        trail: Trail | None = None,
        *,
        tokens: int = 1,
        capability: Capability | None = None,
    ) -> _Model:
        """The `answer` of a worker of the native wire; goes to the next when one fails.

        Args:
            tokens: about how many it computes.
        """

        async def ask(worker: WorkerRecord, left_s: float, request_id: str) -> _Model:
            client = self._clients[worker.wire]
            if not isinstance(request, ScoreRequest):
                fenced = request.model_copy(update=_fence(worker, request.model))
                return await client.call(worker, fenced, answer, left_s)
            told = {**self._account(worker, request.model), "request_id": request_id}
            scored = request.model_copy(update=told)
            with self._drift.request(worker):
                return await client.call(worker, scored, answer, left_s)

        return await self._call(
            request.model, tokens, capability, timeout_s, ask, trail, native=True
        )

    def stop(self, over: TriremeError) -> None:
        """No request goes on or begins: all fail so, as soon as their worker's answer ends."""
        self._over = over
        self.fleet_changed()

    # ---- streams --------------------------------------------------------------------------------

    async def _attempts(
        self, progress: Progress, prefix: Fingerprint, tokens: int, trail: Trail
    ) -> AsyncGenerator[Batch, None]:
        request = progress.request
        begun, limit_s = monotonic(), request.deadline_s
        retry = Retries(self._budget, self._metrics, request.model, progress)
        while self._over is None:
            left_s = limit_s - (monotonic() - begun) if limit_s is not None else None
            if left_s is not None and left_s <= 0:
                raise too_late(limit_s)
            try:
                decision, out = self._choose(request, prefix, tokens, retry, progress)
            except TriremeError:
                if await self._another_fleet(request.model, retry, left_s):
                    continue
                raise
            worker = decision.chosen.worker
            progress.begin(worker.model(request.model))
            fenced = self._fenced(progress.attempt(), worker, retry.tries, left_s)
            stream = self._clients[worker.wire].generate(worker, fenced)
            retry.asks()
            attempt = trail.attempt(request.request_id, retry.tries, decision, out)
            try:
                lent = self._lend(worker, tokens + progress.num_tokens, attempt)
                with lent as loan, self._drift.request(worker):
                    async with aclosing(stream) as batches:
                        async for batch in batches:
                            if isinstance(batch[0], Started):
                                loan.answers()
                                attempt.answered()
                                retry.goes_on(worker)
                                self._prefixes.record(prefix, worker.instance_id)
                            if isinstance(batch[-1], Done):
                                attempt.end("done", batch[-1].cached_tokens)
                            if events := progress.take(batch):
                                yield progress.number, events
                            if progress.fault is not None:
                                raise again(progress.fault)
                            if progress.done:
                                return
                    raise TriremeError("worker_lost", "The worker's answer ended early.")
            except TriremeError as error:
                if self._over is None:
                    retry.note(worker, error)
        raise again(self._over)

    def _choose(
        self,
        request: GenerateRequest,
        prefix: Fingerprint,
        tokens: int,
        retry: Retries,
        progress: Progress,
    ) -> tuple[Decision, Sequence[Out]]:
        left = self._candidates(request.model, retry, _capability(request))
        if not left.group.all_native and needs_native(request):
            left.prefer_native()
        if progress.delivered:
            others = (
                w.instance_id
                for w in left.group.workers
                if w.wire != "native" or not progress.can_go_on(w.model(request.model))
            )
            left.drop("another digest or context", others, or_none=True)
            if not left.group.workers:
                message = "The worker failed in the middle of the answer, and no other can go on."
                raise TriremeError("worker_lost", message) from retry.last
        if not left.group.workers:
            raise retry.nobody()
        matched = self._prefixes.matched_tokens(prefix, left.group.by_id)
        return self._decide(left.group, tokens, matched), left.out

    def _decide(self, group: Group, tokens: int, matched: Mapping[str, int]) -> Decision:
        flying = self.in_flight
        reported = flying.own_tokens if self._view.snapshot.stale else reported_tokens
        return self._policy(Query(group, tokens, flying.unreported, matched, reported), self._rng)

    # ---- calls ----------------------------------------------------------------------------------

    async def _call(
        self,
        model: str,
        tokens: int,
        capability: Capability | None,
        timeout_s: float,
        ask: Callable[[WorkerRecord, float, str], Awaitable[_Answer]],
        trail: Trail | None,
        *,
        native: bool = False,
    ) -> _Answer:
        begun = monotonic()
        trail = trail or Trail()
        retry = Retries(self._budget, self._metrics, model)
        while self._over is None:
            left_s = timeout_s - (monotonic() - begun)
            if left_s <= 0:
                raise too_late(timeout_s)
            left = self._candidates(model, retry, capability)
            if native:
                left.prefer_native()
            if not left.group.workers:
                if await self._another_fleet(model, retry, left_s):
                    continue
                raise retry.nobody()
            decision = self._decide(left.group, tokens, {})
            worker = decision.chosen.worker
            retry.asks()
            attempt = trail.attempt(trail.request_id, retry.tries, decision, left.out)
            try:
                with self._lend(worker, tokens, attempt) as loan:
                    answer = await ask(worker, left_s, f"{trail.request_id}.{retry.tries}")
                    loan.answers()
                    attempt.end("done")
                    return answer
            except TriremeError as error:
                if self._over is None:
                    retry.note(worker, error)
        raise again(self._over)

    # ---- candidates -----------------------------------------------------------------------------

    async def _another_fleet(self, model: str, retry: Retries, left_s: float | None) -> bool:
        """Wait for the next snapshot of the fleet, where one may have an engine that is restarted.

        Returns:
            False when there is no such hope, or no time left to wait.
        """
        if not retry.waits or not self._restarting(model, retry):
            return False
        now_s = monotonic()
        retry.waits_until_s = retry.waits_until_s or now_s + self._restart_wait_s
        patience_s = retry.waits_until_s - now_s
        turn = asyncio.get_running_loop().create_future()
        self._waiting.add(turn)
        try:
            async with asyncio.timeout(min(patience_s, left_s or patience_s)):
                await turn
        except TimeoutError:
            return left_s is not None and left_s < patience_s
        finally:
            self._waiting.discard(turn)
        return True

    def _restarting(self, model: str, retry: Retries) -> bool:
        """Whether a worker of the model has lost its engine and is alive itself."""
        workers = self._view.snapshot.workers.values()
        found = [worker for worker in workers if worker.model(model) is not None]
        if retry.lost_engine and found:
            return True
        return any(worker.state == "failed" for worker in found)

    def _candidates(self, model: str, retry: Retries, capability: Capability | None) -> Sieve:
        """Ready workers that were not tried yet; ejected ones only when there is no other, and
        those that failed a moment ago only when there is none better."""
        able, lacking = self._able(model, capability)
        left = Sieve(able, lacking)
        if not able.workers:
            if not self._view.snapshot.serving(model):
                return left
            message = f"The model `{quoted(model)}` does not do {capability}."
            raise TriremeError("unsupported_by_model", message, param="model")
        now_s = monotonic()
        left.drop("tried", retry.tried(able), or_none=True)
        left.drop("ejected", self._breakers.ejected(able.by_id.keys(), now_s))
        left.drop("set aside", self._breakers.set_aside(now_s))
        return left

    def _able(self, model: str, capability: Capability | None) -> tuple[Group, Sequence[Out]]:
        """The ready workers of a model that do this; found once a snapshot."""
        if self._groups_of is not self._view.snapshot:
            self._groups_of, self._groups = self._view.snapshot, {}
        found = self._groups.get((model, capability))
        if found is None:
            ready = self._groups_of.serving(model)
            able = [w for w in ready if capability is None or _can(w, model, capability)]
            lacking = {w.instance_id for w in ready} - {w.instance_id for w in able}
            out = [left_out(f"lacks {capability}", lacking)] if lacking else ()
            found = self._groups[model, capability] = Group(able), out
        return found

    def _fenced(
        self, request: GenerateRequest, worker: WorkerRecord, number: int, left_s: float | None
    ) -> GenerateRequest:
        """The request as this worker gets it."""
        return request.model_copy(
            update={
                "request_id": f"{request.request_id}.{number}",
                "deadline_s": left_s,
                **self._account(worker, request.model),
            }
        )

    def _account(self, worker: WorkerRecord, model: str) -> dict[str, str | None]:
        """The fence, and by whose account the request is."""
        fence = _fence(worker, model)
        return {**fence, "gateway": self._drift.gateway_id} if fence else fence

    def _lend(self, worker: WorkerRecord, tokens: int, attempt: Attempt) -> _Loan:
        return _Loan(self.in_flight, self._breakers[worker.instance_id], worker, tokens, attempt)


class _Loan:
    """A worker has one request more, inside `with`; transport failures are noted."""

    __slots__ = (
        "_attempt", "_breaker", "_in_flight", "_is_trial", "_ticket", "_tokens", "_worker",
    )  # fmt: skip

    def __init__(
        self,
        in_flight: InFlight,
        breaker: Breaker,
        worker: WorkerRecord,
        tokens: int,
        attempt: Attempt,
    ) -> None:
        self._in_flight, self._breaker, self._attempt = in_flight, breaker, attempt
        self._worker, self._tokens = worker, tokens
        self._is_trial = False

    def answers(self) -> None:
        """The worker has taken the request in: a trial has ended well, whatever comes then."""
        self._breaker.end(False, monotonic(), self._is_trial)
        self._is_trial = False

    def __enter__(self) -> Self:
        self._ticket = self._in_flight.begin(self._worker, self._tokens)
        self._is_trial = self._breaker.begin(monotonic())
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        failed = None
        if isinstance(error, TriremeError):
            failed = True if error.code in _TRANSPORT_FAILURES else None
            self._attempt.end(error.code)
        self._attempt.end("cancelled")
        self._breaker.end(failed, monotonic(), self._is_trial)
        self._in_flight.end(self._ticket)


def _fence(worker: WorkerRecord, model: str) -> dict[str, str | None]:
    """Whom a request is meant for."""
    if worker.wire != "native":
        return {}
    return {"instance_id": worker.instance_id, "digest": _digest(worker, model) or None}


def _digest(worker: WorkerRecord, model: str) -> str:
    record = worker.model(model)
    return record.digest if record is not None else ""


def _capability(request: GenerateRequest) -> Capability:
    return "chat" if request.conv_stops else "completions"


def _can(worker: WorkerRecord, model: str, capability: Capability) -> bool:
    record = worker.model(model)
    return record is not None and capability in record.capabilities


def not_found(model: str) -> TriremeError:
    """Nobody serves the model, or nobody does for this caller."""
    message = f"The model `{quoted(model)}` does not exist or you do not have access to it."
    return TriremeError("model_not_found", message, param="model")
