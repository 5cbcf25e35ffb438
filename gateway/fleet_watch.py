"""Keeps a `FleetView` fresh: one long poll a controller, probes of suspects. All I/O is here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Iterable
from random import Random
from time import monotonic
from typing import Final

import aiohttp

from gateway.fleet_view import FleetView
from protocol.fleet import FleetSnapshot, WorkerRecord
from trireme.service.reasons import Trouble, reason

log = logging.getLogger(__name__)

POLL_WAIT_S: Final = 5.0
POLL_SLACK_S: Final = 3.0
MIN_GAP_S: Final = 0.05
FIRST_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 2.0
PROBE_EVERY_S: Final = 0.25
FAREWELL_S: Final = 0.5
PROBE_TIMEOUT_S: Final = 0.5
"""With a lease of 5 s and a sweep of it every 0.25 s, a frozen worker is gone within 6 s."""

_PROBES: Final = {"native": ("GET", "/native/describe"), "fastchat": ("POST", "/worker_get_status")}


class FleetWatch:
    """Background tasks between `start` and `stop`.

    Args:
        view: what is kept fresh.
        controllers: base URLs.
        session: HTTP client, owned by the caller.
        cluster_token: sent to controllers and workers when not empty.
        changed: called after every change of the view.
    """

    def __init__(
        self,
        view: FleetView,
        controllers: Iterable[str],
        session: aiohttp.ClientSession,
        cluster_token: str,
        changed: Callable[[], None],
    ) -> None:
        self._view = view
        self._controllers = tuple(controllers)
        self._session = session
        self._headers = {"Authorization": f"Bearer {cluster_token}"} if cluster_token else {}
        self._changed = changed
        self._tasks: list[asyncio.Task[None]] = []
        self._random = Random()
        self._id = secrets.token_hex(8)
        self._followed: set[str] = set()
        self._heard = asyncio.Event()

    def start(self) -> None:
        """Begin to poll; needs a running loop."""
        loops = [self._follow(controller) for controller in self._controllers]
        self._tasks = [asyncio.create_task(loop) for loop in [*loops, self._probe_suspects()]]

    async def first_answer(self, timeout_s: float) -> None:
        """Return when a controller has answered, or after that time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._heard.wait()

    async def stop(self) -> None:
        """End all tasks, and tell the controllers that this gateway follows no longer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*map(self._leave, self._followed))

    async def _follow(self, controller: str) -> None:
        last: FleetSnapshot | None = None
        backoff_s, trouble = FIRST_BACKOFF_S, Trouble()
        while True:
            try:
                last = await self._poll(controller, last)
            except Exception as error:  # whatever it is, the next poll may go well
                status = error.status if isinstance(error, aiohttp.ClientResponseError) else None
                why = reason(error, status)
                if trouble.is_news(why, monotonic()):
                    log.warning("controller %s does not tell of the fleet: %s", controller, why)
                last = None
                self._followed.discard(controller)
                self._view.unreachable(controller, monotonic())
                self._changed()
                await asyncio.sleep(backoff_s * self._random.uniform(0.5, 1.0))
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
                continue
            backoff_s = FIRST_BACKOFF_S
            trouble.is_over()
            self._followed.add(controller)
            self._view.observe(controller, last, monotonic())
            self._changed()
            self._heard.set()
            await asyncio.sleep(MIN_GAP_S)

    async def _poll(self, controller: str, last: FleetSnapshot | None) -> FleetSnapshot:
        """The next snapshot; the first poll of a connection does not wait.

        The version in it is the one that the view has taken in: a worker that drains waits for it.
        """
        known = {"gateway": self._id}
        if last is not None:
            known |= {"after": str(last.version), "epoch": last.epoch, "changes": "true"}
        wait_s = POLL_WAIT_S if last is not None else 0.0
        async with self._session.get(
            f"{controller}/fleet",
            params={**known, "wait_s": str(wait_s)},
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=wait_s + POLL_SLACK_S),
            allow_redirects=False,
        ) as response:
            response.raise_for_status()
            heard = FleetSnapshot.model_validate_json(await response.read())
        return last.updated(heard) if last is not None else heard

    async def _leave(self, controller: str) -> None:
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with self._session.delete(
                f"{controller}/fleet/gateways/{self._id}",
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=FAREWELL_S),
            ):
                return

    async def _probe_suspects(self) -> None:
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            suspects = self._view.suspects()
            alive = await asyncio.gather(*map(self._answers, suspects))
            for suspect, answered in zip(suspects, alive, strict=True):
                before = self._view.snapshot.workers
                self._view.probed(suspect.instance_id, answered, monotonic())
                if before.keys() != self._view.snapshot.workers.keys():
                    log.warning(
                        "worker %s is %s", suspect.instance_id, "back" if answered else "gone"
                    )
                    self._changed()

    async def _answers(self, worker: WorkerRecord) -> bool:
        """Whether that very process answers: another may have its address by now."""
        method, path = _PROBES[worker.wire]
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError):
            async with self._session.request(
                method,
                worker.address + path,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S),
                allow_redirects=False,
            ) as response:
                if worker.wire == "native" and response.status == 200:
                    found = WorkerRecord.model_validate_json(await response.read())
                    return found.instance_id == worker.instance_id
                return response.status < 500
        return False
