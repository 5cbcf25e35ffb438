"""The order of a worker's end: say so, let requests finish, hand the rest over, go.

Nobody is cut while a gateway may still send, and nothing is cut that another worker cannot finish,
within twice the grace.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from protocol.errors import TriremeError
from protocol.fleet import DrainStatus
from trireme.service.server import ExitRequest
from worker.registration import Registrar
from worker.runtime import Runtime

log = logging.getLogger(__name__)

LOOK_S: Final = 0.05
FAREWELL_S: Final = 2.0
"""Requests that were ended get so long to tell their callers."""


class Drain:
    """Of one worker; `run` is awaited once, after the first SIGTERM.

    Args:
        exit_request: how the route begins it.
    """

    def __init__(self, runtime: Runtime, registrar: Registrar, exit_request: ExitRequest) -> None:
        self._runtime = runtime
        self._registrar = registrar
        self._exit_request = exit_request
        self._patience_s = runtime.settings.drain_grace_s
        self._grace_s = self._patience_s
        self._asked = False

    def ask(self, instance_id: str, grace_s: float | None) -> DrainStatus:
        """Begin, or say how it gets on; a grace takes the place of the one before.

        Raises:
            TriremeError: `wrong_instance`.
        """
        if instance_id != self._runtime.instance_id:
            raise TriremeError("wrong_instance", "Another worker process serves this address now.")
        began = not self._asked
        self._asked = True
        if grace_s is not None:
            self._grace_s = grace_s
        if began:
            self._exit_request.ask_drain()
        return DrainStatus(began=began, requests=self._runtime.active)

    async def run(self) -> None:
        """Returns when no gateway sends anything and no request is left, or the time is over."""
        self._asked = True
        log.info("the drain begins: %d requests run", self._runtime.active)
        self._runtime.begin_drain()
        told = asyncio.create_task(self._registrar.acknowledged())
        try:
            await self._finish()
            await told
            log.info("the drain is over")
        finally:
            told.cancel()

    async def _finish(self) -> None:
        """Wait for the running requests; hand over what takes longer than the grace.

        With nobody to hand them to, they get as long again as the settings' grace.
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while not await self._runtime.idle(LOOK_S):
            over_s = loop.time() - began_s - self._grace_s
            if over_s >= self._patience_s:
                break
            if over_s >= 0 and self._registrar.successors:
                self._runtime.handover.begin()
        else:
            return
        log.warning("%d requests still run when the drain's time is over", self._runtime.active)
        self._runtime.handover.begin(for_everyone=True)
        await self._runtime.idle(FAREWELL_S)
