"""The gateway's view of the fleet, merged from every controller. Pure: no I/O, no clock.

Readers take `FleetView.snapshot`, an immutable object that is replaced whole. Rules of the merge:

    the same instance               the newer (incarnation, seq) wins
    two instances on one address    the higher incarnation lives there; of equal ones the one that
                                    was heard of last
    a tombstone                     removes; only the controller that has it can take it back
    most reachable complete         the worker is a suspect: left out while a probe of it fails,
    controllers lack a worker       forgotten when no reachable controller lists it either
    an incomplete controller        adds, and removes nothing
    no controller reachable         everything is kept and marked stale
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from protocol.fleet import FleetSnapshot, ModelRecord, WorkerRecord

KNOWN_MODEL_S: Final = 300.0
"""How long a model is still known (503, not 404) after its last worker went."""
KEPT_STAMPS: Final = 64
TOMBSTONE_S: Final = 10.0
"""How long a tombstone is remembered after the last controller told it, as controllers do: a late
heartbeat may reach one that has restarted and knows nothing of the goodbye."""


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


@dataclass(slots=True)
class _Stone:
    """A tombstone: the controllers that told it, with their epochs, and until when it counts."""

    told_by: dict[str, str] = field(default_factory=dict)
    until_s: float = 0.0


class FleetView:
    """Merges controllers' snapshots; `controllers` are their addresses, used as keys only."""

    def __init__(self, controllers: Iterable[str]) -> None:
        self.snapshot = Snapshot()
        self._heard: dict[str, FleetSnapshot | None] = dict.fromkeys(controllers)
        self._reachable: set[str] = set()
        self._workers: dict[str, WorkerRecord] = {}
        self._at: dict[str, str] = {}
        self._newest: dict[str, tuple[tuple[int, int], float]] = {}
        self._silent: set[str] = set()
        self._left: dict[str, _Stone] = {}
        self._seen_models: dict[str, float] = {}

    def observe(self, controller: str, heard: FleetSnapshot, now_s: float) -> None:
        """Merge what a controller answered."""
        self._heard[controller] = heard
        self._reachable.add(controller)
        self._bury(controller, heard, now_s)
        self._merge_all(heard, now_s)
        for instance_id in self._left.keys() & self._workers.keys():
            self._drop(instance_id)
        if len(self._newest) > 2 * len(self._workers) + KEPT_STAMPS:
            self._forget_stamps()
        if self._silent:
            self._silent &= {worker.instance_id for worker in self.suspects()}
        self._publish(now_s)

    def unreachable(self, controller: str, now_s: float) -> None:
        """Note that a controller does not answer; nothing is removed because of it."""
        self._reachable.discard(controller)
        self._publish(now_s)

    def suspects(self) -> tuple[WorkerRecord, ...]:
        """Workers to probe: most of the reachable complete controllers do not list them."""
        complete = [one for one in self._answers() if one.complete]
        if not complete:
            return ()
        lists = Counter(worker.instance_id for one in complete for worker in one.workers)
        return tuple(w for id_, w in self._workers.items() if 2 * lists[id_] < len(complete))

    def probed(self, instance_id: str, answered: bool, now_s: float) -> None:
        """Leave a suspect out while it does not answer; forget it when nobody lists it."""
        if answered or all(worker.instance_id != instance_id for worker in self.suspects()):
            self._silent.discard(instance_id)
        elif any(w.instance_id == instance_id for one in self._answers() for w in one.workers):
            self._silent.add(instance_id)
        else:
            self._drop(instance_id)
            for one in self._answers():  # another may have waited for its address
                self._merge_all(one, now_s)
        self._publish(now_s)

    def knows(self, model: str, now_s: float) -> bool:
        """Whether the model is served by any worker, in whatever state, or was a while ago."""
        seen_s = self._seen_models.get(model)
        if seen_s is not None and now_s - seen_s <= KNOWN_MODEL_S:
            return True
        return any(worker.model(model) is not None for worker in self._workers.values())

    def known_models(self, now_s: float) -> set[str]:
        """Models for which `knows` is true because a worker served them a while ago."""
        seen = self._seen_models.items()
        return {name for name, seen_s in seen if now_s - seen_s <= KNOWN_MODEL_S}

    @property
    def reachable(self) -> int:
        """How many controllers answer."""
        return len(self._reachable)

    def _answers(self) -> list[FleetSnapshot]:
        """What the reachable controllers said last."""
        heard = [self._heard[controller] for controller in self._reachable]
        return [one for one in heard if one is not None]

    def _bury(self, controller: str, heard: FleetSnapshot, now_s: float) -> None:
        """Remember tombstones, while anybody names the worker and for some time after.

        A controller that is slower to learn that it left still lists it.
        """
        for instance_id in heard.left:
            stone = self._left.setdefault(instance_id, _Stone())
            stone.told_by[controller] = heard.epoch
            stone.until_s = now_s + TOMBSTONE_S
        if not self._left:
            return
        for worker in heard.workers:
            buried = self._left.get(worker.instance_id)
            if buried is not None and buried.told_by.get(controller) == heard.epoch:
                del self._left[worker.instance_id]
        answers = [one for one in self._heard.values() if one is not None]
        named = {instance_id for one in answers for instance_id in one.left}
        for instance_id, stone in list(self._left.items()):
            if now_s >= stone.until_s and instance_id not in named:
                del self._left[instance_id]

    def _merge_all(self, heard: FleetSnapshot, now_s: float) -> None:
        for worker in heard.workers:
            # most records are the very objects that the last answer had
            known = self._workers.get(worker.instance_id) is worker
            if not known and worker.instance_id not in self._left:
                self._merge(worker, now_s)

    def _merge(self, new: WorkerRecord, now_s: float) -> None:
        stamp, advanced_s = self._newest.get(new.instance_id, ((-1, -1), now_s))
        # each controller counts for itself what comes on FastChat's wire
        if (new.incarnation, new.seq) > stamp or new.wire == "fastchat":
            stamp, advanced_s = (new.incarnation, new.seq), now_s
            self._newest[new.instance_id] = stamp, advanced_s
        elif (new.incarnation, new.seq) < stamp:
            return
        holder = self._at.get(new.address, new.instance_id)
        if holder != new.instance_id:
            held_s = self._newest[holder][1]
            if (self._workers[holder].incarnation, held_s) > (new.incarnation, advanced_s):
                return
            self._drop(holder)
        old = self._workers.get(new.instance_id)
        if old is not None and old.address != new.address:
            del self._at[old.address]
        self._at[new.address] = new.instance_id
        self._workers[new.instance_id] = new

    def _forget_stamps(self) -> None:
        listed = {w.instance_id for one in self._heard.values() if one for w in one.workers}
        kept = listed | self._workers.keys()
        self._newest = {id_: stamp for id_, stamp in self._newest.items() if id_ in kept}

    def _drop(self, instance_id: str) -> None:
        worker = self._workers.pop(instance_id)
        self._silent.discard(instance_id)
        del self._at[worker.address]

    def _publish(self, now_s: float) -> None:
        ready: dict[str, list[WorkerRecord]] = {}
        models: dict[str, ModelRecord] = {}
        workers = {id_: one for id_, one in self._workers.items() if id_ not in self._silent}
        for worker in workers.values():
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
            workers=MappingProxyType(workers),
            models=MappingProxyType(models),
            ready=MappingProxyType({name: tuple(found) for name, found in ready.items()}),
            synced=self.snapshot.synced or bool(self._reachable),
            stale=not self._reachable,
        )
