"""Tells every controller, over and over, all there is to know of this worker.

One loop a controller, so a dead one delays no other. A controller that knows no native route gets
FastChat's registration instead.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Mapping, Sequence
from time import monotonic

import httpx

from protocol.fastchat import HeartBeat, RegisterWorker
from protocol.fleet import HeartbeatAnswer, Load, WorkerRecord
from trireme.service.reasons import Trouble, reason
from worker.fastchat import status
from worker.runtime import Runtime

log = logging.getLogger(__name__)

FASTCHAT_INTERVAL_S = 45.0
_TIMEOUT_S = 3.0
_FAREWELL_S = 0.5
_MAX_BACKOFF_S = 1.5
"""A controller that comes back has the whole fleet within two seconds."""
_JITTER = 0.1
_DRAIN_INTERVAL_S = 0.05
"""Seconds between reports while gateways are still to learn that this worker drains."""
_LEASE_S = 5.0
"""The longest wait for that, where no controller has told its lease."""


class Reporter:
    """Makes the worker's record; owns its incarnation and sequence number."""

    def __init__(self, runtime: Runtime, address: str) -> None:
        self._runtime = runtime
        self._address = address
        self._incarnation = 0
        self._seq = 0

    @property
    def instance_id(self) -> str:
        """The runtime's instance id."""
        return self._runtime.instance_id

    @property
    def address(self) -> str:
        """The base URL that is registered."""
        return self._address

    def record(self) -> WorkerRecord:
        """The whole record as of now; each has a sequence number of its own."""
        self._seq += 1
        runtime, load = self._runtime, self._runtime.load()
        ready = runtime.ready
        queued, queued_tokens = (
            (ready.admission.queued, ready.admission.queued_tokens) if ready else (0, 0)
        )
        capacity = ready.admission.capacity if ready else 0
        return WorkerRecord(
            instance_id=runtime.instance_id,
            incarnation=self._incarnation,
            seq=self._seq,
            address=self._address,
            models=runtime.model_records(),
            state=runtime.state,
            reason=(runtime.not_ready() or "")[:256] if runtime.state == "failed" else "",
            load=Load(
                running=load.running,
                waiting=load.waiting + queued,
                waiting_tokens=load.waiting_tokens + queued_tokens,
                kv_free=min(1.0, max(0.0, load.kv_free)),
                prefill_tps=load.prefill_tps,
                decode_tps=load.decode_tps,
                capacity=capacity,
            ),
            engine_step=load.step,
            engine_starts=runtime.engine_starts,
            busy=load.busy,
            queue_length=load.running + load.waiting + queued,
            serving=runtime.serving,
        )

    @property
    def draining(self) -> bool:
        """Whether the worker takes no more requests, for good."""
        return self._runtime.state == "draining"

    def was_ready(self) -> bool:
        """Whether there is a model, so that registering makes sense."""
        return self._runtime.ready is not None

    def outrank(self, incarnation: int) -> None:
        """Another process had this address: be newer than it was."""
        self._incarnation = max(self._incarnation, incarnation + 1)

    def registration(self) -> RegisterWorker:
        """FastChat's registration; of a draining worker without a model, so that none is asked."""
        told = status(self._runtime)
        if self.draining:
            told = told.model_copy(update={"model_names": []})
        return RegisterWorker(worker_name=self._address, check_heart_beat=True, worker_status=told)

    def heartbeat(self) -> HeartBeat:
        """FastChat's heartbeat."""
        return HeartBeat(worker_name=self._address, queue_length=status(self._runtime).queue_length)


class Registrar:
    """The loops.

    Args:
        controllers: base URLs; none is fine.
        interval_s: seconds between heartbeats, each with 10 % of jitter.
        fastchat_interval_s: the same for a FastChat controller.
    """

    def __init__(
        self,
        controllers: Sequence[str],
        reporter: Reporter,
        *,
        interval_s: float,
        cluster_token: str,
        fastchat_interval_s: float = FASTCHAT_INTERVAL_S,
    ) -> None:
        self._reporter = reporter
        self._token = cluster_token
        self._links = [_Link(url, reporter, interval_s, fastchat_interval_s) for url in controllers]
        self._client: httpx.AsyncClient | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin; nothing is sent before the model is ready."""
        if not self._links:
            return
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._token}"} if self._token else {},
            timeout=_TIMEOUT_S,
            verify=ssl.create_default_context(),
            trust_env=False,
        )
        self._tasks = [asyncio.create_task(link.run(self._client)) for link in self._links]

    def push(self) -> None:
        """Report at once: the state has changed."""
        for link in self._links:
            link.due.set()

    async def acknowledged(self) -> None:
        """Returns when no gateway sends requests here any more: every controller that answers has
        said so of those that follow it. It waits one lease at most."""
        lease_s = max((link.lease_s for link in self._links), default=0.0) or _LEASE_S
        try:
            async with asyncio.timeout(lease_s):
                await asyncio.gather(*(link.settled.wait() for link in self._links))
        except TimeoutError:
            log.warning("not every gateway has acknowledged within %g s that this drains", lease_s)

    @property
    def successors(self) -> int:
        """Other workers that could go on with the answers of this one, once it drains."""
        return max((link.successors for link in self._links), default=0)

    @property
    def registered(self) -> Mapping[str, bool]:
        """By the configured address of each controller: whether it took the last report."""
        return {link.url: link.registered for link in self._links}

    async def close(self) -> None:
        """Leave every controller; waits half a second at most."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            client = self._client
            await asyncio.gather(*(link.leave(client) for link in self._links))
            await client.aclose()


class _Link:
    """One controller: what it last said, and when it is told next.

    Attributes:
        lease_s: seconds that it keeps a record; 0 before it has said.
        settled: set once nobody who asks it would still send requests to this draining worker,
            or it is gone: nobody listens there, or two reports in a row have failed.
        successors: as it says, once this worker drains.
        registered: whether it took the last report.
    """

    def __init__(
        self, url: str, reporter: Reporter, interval_s: float, fastchat_interval_s: float
    ) -> None:
        self.due = asyncio.Event()
        self.settled = asyncio.Event()
        self.lease_s = 0.0
        self.successors = 0
        self.url = url
        self._reporter = reporter
        self._interval_s = interval_s
        self._fastchat_interval_s = fastchat_interval_s
        self.registered = False
        self._told = False  # a record was sent: it may be stored, answered or not
        self._is_fastchat = False
        self._failures = 0
        self._trouble = Trouble()

    async def run(self, client: httpx.AsyncClient) -> None:
        """Report until cancelled."""
        while True:
            self.due.clear()
            pause_s = self._interval_s
            if self.registered or self._reporter.was_ready():
                pause_s = await self._report(client)
            elif self._reporter.draining:
                self.settled.set()  # nobody was ever told of it
            if self._reporter.draining and not self.settled.is_set():
                pause_s = _DRAIN_INTERVAL_S
            jitter = 1 + _JITTER * (2 * random.random() - 1)
            try:
                async with asyncio.timeout(pause_s * jitter):
                    await self.due.wait()
            except TimeoutError:
                continue

    async def leave(self, client: httpx.AsyncClient) -> None:
        """Say goodbye; FastChat's controller knows no such word."""
        if not self._told or self._is_fastchat:
            return
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await client.delete(self._record_url())
        except (httpx.HTTPError, TimeoutError, OSError) as error:
            log.info("controller %s was not told goodbye: %s", self.url, reason(error))

    async def _report(self, client: httpx.AsyncClient) -> float:
        """Send one report; returns the seconds until the next one."""
        try:
            if self._is_fastchat:
                await self._fastchat(client)
            else:
                await self._native(client)
        except (httpx.HTTPError, OSError, ValueError) as error:
            self._lost(error)
            return min(_MAX_BACKOFF_S, self._interval_s * 2.0 ** min(self._failures - 1, 10))
        if not self.registered or self._failures:
            wire = "FastChat's wire" if self._is_fastchat else "the native wire"
            log.info("registered with controller %s by %s", self.url, wire)
        self.registered, self._failures = True, 0
        self._trouble.is_over()
        return self._fastchat_interval_s if self._is_fastchat else self._interval_s

    def _lost(self, error: Exception) -> None:
        answered = error.response if isinstance(error, httpx.HTTPStatusError) else None
        why = reason(error, answered.status_code if answered is not None else None)
        if self._trouble.is_news(why, monotonic()):
            log.warning("controller %s does not take the heartbeat: %s", self.url, why)
        self._failures += 1
        if self._reporter.draining and (self._failures > 1 or _refused(error)):
            self.settled.set()
            self.successors = 0
        self._is_fastchat = False  # whatever comes back there is asked anew
        self.registered = False

    async def _native(self, client: httpx.AsyncClient) -> None:
        record = self._reporter.record()
        response = await self._put(client, record)
        if response.status_code == httpx.codes.CONFLICT:
            stored = HeartbeatAnswer.model_validate_json(response.content)
            self._reporter.outrank(stored.incarnation)
            record = self._reporter.record()
            response = await self._put(client, record)
        if response.status_code == httpx.codes.NOT_FOUND:
            await self._fastchat(client)
            return
        answer = HeartbeatAnswer.model_validate_json(response.raise_for_status().content)
        self.lease_s = answer.lease_ms / 1000 or self.lease_s
        self.successors = answer.successors
        if record.state == "draining" and answer.acknowledged:
            self.settled.set()

    async def _put(self, client: httpx.AsyncClient, record: WorkerRecord) -> httpx.Response:
        self._told = True
        return await client.put(
            self._record_url(),
            content=record.model_dump_json(),
            headers={"Content-Type": "application/json"},
        )

    async def _fastchat(self, client: httpx.AsyncClient) -> None:
        draining = self._reporter.draining
        if self._is_fastchat and (not draining or self.settled.is_set()):
            beat = self._reporter.heartbeat().model_dump()
            response = await client.post(f"{self.url}/receive_heart_beat", json=beat)
            response.raise_for_status()
            if response.json().get("exist"):
                return
        registration = self._reporter.registration().model_dump()
        response = await client.post(f"{self.url}/register_worker", json=registration)
        response.raise_for_status()
        self._is_fastchat = True
        if draining:
            self.settled.set()  # FastChat's gateways ask for each request

    def _record_url(self) -> str:
        return f"{self.url}/fleet/workers/{self._reporter.instance_id}"


def _refused(error: BaseException | None) -> bool:
    """Whether nobody listens there: any other failure may pass."""
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None
