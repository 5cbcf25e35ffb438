"""The registry as a running process has it: clock, feed, counters and trust around the core."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from functools import lru_cache

from controller.addresses import check_address, is_loopback_url
from controller.config import ControllerSettings
from controller.dispatch import CHOOSERS, Candidate
from controller.feed import FleetFeed
from controller.followers import Followers
from controller.metrics import ControllerMetrics
from controller.registry import Entry, Registry, Verdict
from protocol.errors import quoted
from protocol.fleet import WorkerRecord
from trireme.service.settings import is_loopback

log = logging.getLogger(__name__)


class Fleet:
    """What routes act on; every change goes through here, so every change is published.

    Args:
        clock: seconds, monotonic.
        rng: draws the lottery.
    """

    def __init__(
        self, settings: ControllerSettings, *, clock: Callable[[], float], rng: random.Random
    ) -> None:
        self.epoch = secrets.token_hex(8)
        self.clock = clock
        self._authenticated = bool(settings.cluster_token)
        self._sweep_every_s = min(0.25, settings.heartbeat_ttl / 10)
        self._choose = CHOOSERS[settings.dispatch_method]
        self._rng = rng
        self._may_relay = lru_cache(maxsize=8192)(self._allowed_relay)
        self.registry = Registry(
            ttl_s=settings.heartbeat_ttl,
            epoch=self.epoch,
            now=clock(),
            sweep_every_s=self._sweep_every_s,
            max_workers=settings.max_workers,
        )
        self.feed = FleetFeed(self.registry)
        self.followers = Followers(clock())
        self.metrics = ControllerMetrics(
            self.registry, self.feed, lambda: self.followers.count(clock())
        )

    def put(self, record: WorkerRecord, peer: str) -> Verdict:
        """Take a native record that came from the IP address `peer`.

        Raises:
            TriremeError: the address is none, or the registry is full.
        """
        known = self.registry.get(record.instance_id)
        if known is None or known.record.address != record.address:
            check_address(record.address, "address")
        relayable = self._may_relay(record.address, peer)
        verdict = self.registry.put(record, self.clock(), relayable=relayable)
        self._note(record, verdict)
        return verdict

    def acknowledged(self, instance_id: str) -> bool:
        """Whether every gateway that follows this fleet knows the worker's state."""
        entry = self.registry.get(instance_id)
        return entry is not None and self.followers.all_saw(entry.shape_version, self.clock())

    def register(self, record: WorkerRecord, peer: str, lease_s: float | None) -> Verdict:
        """Take a FastChat registration that came from the IP address `peer`."""
        relayable = self._may_relay(record.address, peer)
        verdict = self.registry.put_leased(
            record, self.clock(), lease_s=lease_s, relayable=relayable
        )
        self._note(record, verdict)
        return verdict

    def beat(self, address: str, queue_length: int) -> bool:
        """Take a FastChat heartbeat; False when the worker must register again."""
        known = self.registry.beat(address, queue_length, self.clock())
        self.feed.publish()
        return known

    def leave(self, instance_id: str) -> None:
        """A worker said goodbye, or a person removes it."""
        if self.registry.leave(instance_id, self.clock()):
            log.info("worker %s left", quoted(instance_id))
        self.feed.publish()

    def sweep(self) -> None:
        """Drop what ran out."""
        held = self.registry.held
        gone = self.registry.sweep(self.clock())
        if gone:
            self.metrics.expirations.inc(len(gone))
            log.warning("lease ran out: %s", ", ".join(map(quoted, gone)))
        if self.registry.held > held:
            log.warning(
                "most workers of a model fell silent at once: %d are kept one lease more",
                self.registry.held,
            )
        self.feed.publish()

    async def sweep_for_ever(self) -> None:
        """Sweep at the registry's pace until cancelled."""
        while True:
            self.sweep()
            await asyncio.sleep(self._sweep_every_s)

    def dispatch(self, model: str, *, relayable_only: bool = False) -> Entry | None:
        """Choose a ready worker for `model` and count the request into its queue."""
        entries = {
            entry.record.instance_id: entry
            for entry in self.registry.ready(model)
            if entry.relayable or not relayable_only
        }
        candidates = [
            Candidate(key, entry.record.speed, entry.record.queue_length + entry.sent)
            for key, entry in entries.items()
        ]
        chosen = self._choose(candidates, self._rng)
        self.metrics.dispatches.labels("yes" if chosen else "no").inc()
        if chosen is None:
            return None
        self.registry.note_sent(chosen.instance_id)
        return entries[chosen.instance_id]

    def _allowed_relay(self, address: str, peer: str) -> bool:
        """A valid token was shown, or all of it happens on this machine."""
        return self._authenticated or (is_loopback(peer) and is_loopback_url(address))

    def _note(self, record: WorkerRecord, verdict: Verdict) -> None:
        self.metrics.records[record.wire, verdict.outcome] += 1
        if verdict.outcome == "joined":
            names = quoted(", ".join(model.name for model in record.models), limit=1000)
            log.info("worker %s at %s: %s", quoted(record.instance_id), record.address, names)
        self.feed.publish()
