"""The gateway's view of the fleet, merged from every controller. Pure: no I/O, no clock.

Readers take `FleetView.snapshot`, an immutable object that is replaced whole. Rules of the merge:
the newer (incarnation, seq) of an instance wins; of two instances on one address the one with the
higher incarnation lives there; a tombstone removes; an incomplete controller adds and removes
nothing; a worker that every reachable complete controller lacks is a suspect, removed once a probe
of it fails; with no controller reachable everything is kept and marked stale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from protocol.fleet import FleetSnapshot, ModelRecord, WorkerRecord

KNOWN_MODEL_S: Final = 300.0
"""How long a model is still known (503, not 404) after its last worker went."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of the fleet at one moment.

    Attributes:
        workers: by instance id.
        models: by name, of `ready` workers only; the shortest context length of them.
        synced: whether any controller has answered since the start.
        stale: whether no controller is reachable now.
    """

    workers: Mapping[str, WorkerRecord] = field(default_factory=lambda: MappingProxyType({}))
    models: Mapping[str, ModelRecord] = field(default_factory=lambda: MappingProxyType({}))
    ready: Mapping[str, tuple[WorkerRecord, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    synced: bool = False
    stale: bool = True

    def serving(self, model: str) -> tuple[WorkerRecord, ...]:
        """The `ready` workers of that model."""
        return self.ready.get(model, ())


class FleetView:
    """Merges controllers' snapshots; `controllers` are their addresses, used as keys only."""

    def __init__(self, controllers: Iterable[str]) -> None:
        self.snapshot = Snapshot()
        self._heard: dict[str, FleetSnapshot | None] = dict.fromkeys(controllers)
        self._reachable: set[str] = set()
        self._workers: dict[str, WorkerRecord] = {}
        self._at: dict[str, str] = {}
        self._left: dict[str, set[str]] = {}
        self._seen_models: dict[str, float] = {}

    def observe(self, controller: str, heard: FleetSnapshot, now_s: float) -> None:
        """Merge what a controller answered."""
        self._heard[controller] = heard
        self._reachable.add(controller)
        self._bury(controller, heard)
        for worker in heard.workers:
            # most records are the very objects that the last answer had
            known = self._workers.get(worker.instance_id) is worker
            if not known and worker.instance_id not in self._left:
                self._merge(worker)
        for instance_id in self._left.keys() & self._workers.keys():
            self._drop(instance_id)
        self._publish(now_s)

    def unreachable(self, controller: str, now_s: float) -> None:
        """Note that a controller does not answer; nothing is removed because of it."""
        self._reachable.discard(controller)
        self._publish(now_s)

    def suspects(self) -> tuple[WorkerRecord, ...]:
        """Workers to probe: no reachable controller lists them, and a complete one was asked."""
        heard = [self._heard[controller] for controller in self._reachable]
        answers = [one for one in heard if one is not None]
        if not any(one.complete for one in answers):
            return ()
        listed = {worker.instance_id for one in answers for worker in one.workers}
        return tuple(w for id_, w in self._workers.items() if id_ not in listed)

    def probe_failed(self, instance_id: str, now_s: float) -> None:
        """Remove a worker that is still a suspect and does not answer."""
        if any(worker.instance_id == instance_id for worker in self.suspects()):
            self._drop(instance_id)
            self._publish(now_s)

    def knows(self, model: str, now_s: float) -> bool:
        """Whether the model is served by any worker, in whatever state, or was a while ago."""
        seen_s = self._seen_models.get(model)
        if seen_s is not None and now_s - seen_s <= KNOWN_MODEL_S:
            return True
        return any(worker.model(model) is not None for worker in self._workers.values())

    @property
    def reachable(self) -> int:
        """How many controllers answer."""
        return len(self._reachable)

    def _bury(self, controller: str, heard: FleetSnapshot) -> None:
        """Remember tombstones, by the controllers that have them, while anybody names the worker.

        Only a controller that had the tombstone itself can bring the worker back: one that is
        slower to learn that it left still lists it.
        """
        for instance_id in heard.left:
            self._left.setdefault(instance_id, set()).add(controller)
        if not self._left:
            return
        for worker in heard.workers:
            if controller in self._left.get(worker.instance_id, ()):
                del self._left[worker.instance_id]
        answers = [one for one in self._heard.values() if one is not None]
        named = {instance_id for one in answers for instance_id in one.left}
        named |= {worker.instance_id for one in answers for worker in one.workers}
        self._left = {id_: by for id_, by in self._left.items() if id_ in named}

    def _merge(self, new: WorkerRecord) -> None:
        old = self._workers.get(new.instance_id)
        if old is not None and (old.incarnation, old.seq) > (new.incarnation, new.seq):
            return
        holder = self._at.get(new.address, new.instance_id)
        if holder != new.instance_id:
            if self._workers[holder].incarnation > new.incarnation:
                return
            self._drop(holder)
        if old is not None and old.address != new.address:
            del self._at[old.address]
        self._at[new.address] = new.instance_id
        self._workers[new.instance_id] = new

    def _drop(self, instance_id: str) -> None:
        worker = self._workers.pop(instance_id)
        del self._at[worker.address]

    def _publish(self, now_s: float) -> None:
        ready: dict[str, list[WorkerRecord]] = {}
        models: dict[str, ModelRecord] = {}
        for worker in self._workers.values():
            for model in worker.models:
                self._seen_models[model.name] = now_s
                if worker.state != "ready":
                    continue
                ready.setdefault(model.name, []).append(worker)
                known = models.get(model.name)
                if known is None or 0 < model.context_length < (known.context_length or 2**63):
                    models[model.name] = model
        for name in [n for n, s in self._seen_models.items() if now_s - s > KNOWN_MODEL_S]:
            del self._seen_models[name]
        self.snapshot = Snapshot(
            workers=MappingProxyType(dict(self._workers)),
            models=MappingProxyType(models),
            ready=MappingProxyType({name: tuple(found) for name, found in ready.items()}),
            synced=self.snapshot.synced or bool(self._reachable),
            stale=not self._reachable,
        )
