"""The fleet as soft state with leases. Pure: the clock is passed in, in monotonic seconds.

One entry a worker process, one live worker an address. What the rules defend against:

    a heartbeat late, doubled, reordered    (incarnation, seq) must be newer than the stored one
    two processes on one address            the second is told the first's incarnation, comes back
                                            with one more and takes the address over
    a heartbeat after the goodbye           a tombstone, for two TTLs after the last such one
    a controller that was stopped a while   a late sweep extends all leases by its own gap
    a partition, most of a model silent     held one lease more, and a gauge says so
    a controller just started               `complete` is False for one TTL
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Literal, NamedTuple, TypeAlias

from protocol.errors import TriremeError
from protocol.fleet import FleetSnapshot, WorkerRecord

Outcome: TypeAlias = Literal["joined", "changed", "renewed", "stale", "conflict"]
TOMBSTONE_TTLS: Final = 2
_LOAD_FIELDS: Final = "engine_step queue_length busy speed load serving".split()
"""Fields that change with the work a worker has: gateways learn of them a little later."""
_load_of: Final = attrgetter(*_LOAD_FIELDS)
_shape_of: Final = attrgetter(*(WorkerRecord.model_fields.keys() - {"seq", *_LOAD_FIELDS}))
SILENT_SHARE: Final = 0.5
"""A worker counts as silent when less than this share of its lease is left."""


@dataclass(slots=True)
class Entry:
    """One live worker.

    Attributes:
        record: the newest that was accepted.
        joined_at, heard_at: seconds; of the first and of the last accepted record.
        lease_s: seconds without a heartbeat that it survives; None: it never expires.
        expires_at: seconds; meaningless when `lease_s` is None.
        relayable: whether requests may be relayed to its address.
        sent: requests handed to it since its last heartbeat.
        held: whether its lease ran out and was prolonged because most of a model was silent.
        shape_version: the registry's version when more of its record changed than its load.
    """

    record: WorkerRecord
    joined_at: float
    heard_at: float
    lease_s: float | None
    expires_at: float
    relayable: bool
    sent: int = 0
    held: bool = False
    shape_version: int = 0

    def due(self, now: float) -> bool:
        """Whether its lease ran out."""
        return self.lease_s is not None and now >= self.expires_at

    def silent(self, now: float) -> bool:
        """Whether it missed heartbeats: most of its lease is used up."""
        if self.lease_s is None:
            return False
        return self.held or self.expires_at - now < self.lease_s * SILENT_SHARE


@dataclass(slots=True)
class _Tombstone:
    until: float
    incarnation: int
    displaced_from: str | None


class Verdict(NamedTuple):
    """What became of a record.

    Attributes:
        outcome: `joined`, `changed` and `renewed` are accepted; `renewed` changed nothing but
            the sequence number; `conflict`: the address is another live process's.
        incarnation: the stored one.
        lease_s: how long the record lives without a heartbeat; 0 when refused or for ever.
    """

    outcome: Outcome
    incarnation: int
    lease_s: float = 0.0

    @property
    def accepted(self) -> bool:
        return self.outcome in ("joined", "changed", "renewed")


class Registry:
    """All that a controller knows of the fleet.

    Args:
        ttl_s: lease of a worker that asks for none; also the time that warming takes.
        epoch: random, one a process.
        now: seconds, monotonic; every later call passes a time that is not earlier.
        sweep_every_s: how often the caller means to sweep; a longer gap counts as a stall.
        max_workers: most entries kept; also bounds the tombstones.

    Attributes:
        version: grows with every change that a gateway can see.
        shape_version: `version` at the last change other than of load.
        revision: grows with every accepted record, also one that renews a lease only.
        expired: workers whose lease ran out, ever.
    """

    def __init__(
        self, *, ttl_s: float, epoch: str, now: float, sweep_every_s: float, max_workers: int = 4096
    ) -> None:
        self.version = 1
        self.shape_version = 1
        self.revision = 1
        self.expired = 0
        self._ttl_s = ttl_s
        self._epoch = epoch
        self._sweep_every_s = sweep_every_s
        self._max_workers = max_workers
        self._swept_at = now
        self._warm_at: float | None = now + ttl_s
        self._entries: dict[str, Entry] = {}
        self._by_address: dict[str, str] = {}
        self._tombstones: dict[str, _Tombstone] = {}
        # instance id -> version at which it was heard of or dropped, the latest last
        self._heard: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._gone_forgotten = 0

    # what is known

    @property
    def complete(self) -> bool:
        """Whether every living worker had the time to say so since the start."""
        return self._warm_at is None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All live workers, in the order of their joining."""
        return tuple(self._entries.values())

    @property
    def held(self) -> int:
        """Workers that are kept only because most of a model fell silent at once."""
        return sum(entry.held for entry in self._entries.values())

    def get(self, instance_id: str) -> Entry | None:
        """The live worker of that id."""
        return self._entries.get(instance_id)

    def at(self, address: str) -> Entry | None:
        """The live worker at that address."""
        instance_id = self._by_address.get(address)
        return None if instance_id is None else self._entries[instance_id]

    def ready(self, model: str | None = None) -> list[Entry]:
        """Workers that take requests, for `model` if given; those not held come alone if any."""
        ready = [
            entry
            for entry in self._entries.values()
            if entry.record.state == "ready" and (model is None or entry.record.model(model))
        ]
        return [entry for entry in ready if not entry.held] or ready

    def successors(self, instance_id: str) -> int:
        """Other ready workers that serve all that this one serves, by digest and context length:
        they can go on with its answers."""
        entry = self._entries.get(instance_id)
        if entry is None:
            return 0
        served = _served(entry.record)
        return sum(other is not entry and served <= _served(other.record) for other in self.ready())

    def snapshot(self) -> FleetSnapshot:
        """What gateways are told."""
        return FleetSnapshot(
            epoch=self._epoch,
            version=self.version,
            complete=self.complete,
            workers=tuple(entry.record for entry in self._entries.values()),
            left=tuple(self._tombstones),
        )

    def changes(self, after: int) -> FleetSnapshot:
        """What gateways are told that know version `after`; all when that is too long ago."""
        if after <= self._gone_forgotten:
            return self.snapshot()
        return FleetSnapshot(
            epoch=self._epoch,
            version=self.version,
            complete=self.complete,
            workers=tuple(self._entries[each].record for each in _since(self._heard, after)),
            left=tuple(self._tombstones),
            since=after,
            gone=tuple(_since(self._gone, after)),
        )

    # what happens

    def put(self, record: WorkerRecord, now: float, *, relayable: bool = False) -> Verdict:
        """A worker's record: registration and heartbeat alike.

        Raises:
            TriremeError: `overloaded` when a new worker does not fit.
        """
        refused = self._refuse(record, now)
        if refused is not None:
            return refused
        lease_s = record.ttl_ms / 1000 if record.ttl_ms else self._ttl_s
        return self._store(record, now, lease_s, relayable)

    def put_leased(
        self, record: WorkerRecord, now: float, *, lease_s: float | None, relayable: bool = False
    ) -> Verdict:
        """A record that comes without incarnation or sequence number, on FastChat's wire.

        It is the newest by definition: it takes its address over from whoever holds it.

        Args:
            lease_s: seconds without a heartbeat that it survives; None: it never expires.

        Raises:
            TriremeError: `overloaded` when a new worker does not fit.
        """
        stored = self.at(record.address)
        incarnation = 0
        if stored is not None:
            newer = stored.record.instance_id != record.instance_id
            incarnation = stored.record.incarnation + newer
        seq = stored.record.seq + 1 if stored is not None else 0
        record = record.model_copy(update={"incarnation": incarnation, "seq": seq})
        self._tombstones.pop(record.instance_id, None)
        return self._store(record, now, lease_s, relayable)

    def beat(self, address: str, queue_length: int, now: float) -> bool:
        """A FastChat heartbeat; False when no worker of that wire is known at `address`."""
        entry = self.at(address)
        if entry is None or entry.record.wire != "fastchat":
            return False
        record = entry.record.model_copy(
            update={"queue_length": queue_length, "seq": entry.record.seq + 1}
        )
        self._store(record, now, entry.lease_s, entry.relayable)
        return True

    def leave(self, instance_id: str, now: float) -> bool:
        """A worker says goodbye; its tombstone keeps late heartbeats out. False: unknown."""
        entry = self._entries.get(instance_id)
        self._bury(instance_id, entry.record.incarnation if entry else 0, now, None)
        self._changed()
        return entry is not None

    def note_sent(self, instance_id: str) -> None:
        """A request was handed to a worker: its queue counts as one longer until it beats."""
        self._entries[instance_id].sent += 1

    def sweep(self, now: float) -> list[str]:
        """Drop what ran out; returns the ids of workers whose lease did."""
        gap = now - self._swept_at
        self._swept_at = now
        if gap > 2 * self._sweep_every_s:
            self._extend(gap, now)
        if self._warm_at is not None and now >= self._warm_at:
            self._warm_at = None
            self._changed()
        due = [entry for entry in self._entries.values() if entry.due(now)]
        silenced = self._silenced_models(now) if due else frozenset()
        gone = []
        for entry in due:
            lease_s = entry.lease_s or 0.0
            if not entry.held and any(m.name in silenced for m in entry.record.models):
                entry.held = True
                entry.expires_at = now + lease_s
            else:
                gone.append(entry.record.instance_id)
        for instance_id in gone:
            self._drop(instance_id)
        self.expired += len(gone)
        old = [each for each, stone in self._tombstones.items() if now >= stone.until]
        for instance_id in old:
            del self._tombstones[instance_id]
        if gone or old:
            self._changed()
        return gone

    # how

    def _refuse(self, record: WorkerRecord, now: float) -> Verdict | None:
        """Why a native record is not taken, or None. It makes room at a conquered address."""
        stored = self._entries.get(record.instance_id)
        if stored is not None:
            newest = (stored.record.incarnation, stored.record.seq)
            if (record.incarnation, record.seq) <= newest:
                return Verdict("stale", stored.record.incarnation)
        holder = self.at(record.address)
        other = holder is not None and holder.record.instance_id != record.instance_id
        stone = self._tombstones.get(record.instance_id)
        # a process that said goodbye is no more; one that was displaced waits for its address
        if stone is not None and (other or stone.displaced_from is None):
            stone.until = now + TOMBSTONE_TTLS * self._ttl_s
            return Verdict("stale", stone.incarnation)
        if holder is not None and other and record.incarnation <= holder.record.incarnation:
            return Verdict("conflict", holder.record.incarnation)
        return None

    def _store(
        self, record: WorkerRecord, now: float, lease_s: float | None, relayable: bool
    ) -> Verdict:
        before = self._entries.get(record.instance_id)
        holder = self.at(record.address)
        takes_over = holder is not None and holder is not before
        if before is None and not takes_over and len(self._entries) >= self._max_workers:
            raise TriremeError(
                "overloaded", f"The registry is full: it keeps {self._max_workers} workers."
            )
        if holder is not None and takes_over:
            self._bury(holder.record.instance_id, record.incarnation, now, record.address)
        self._tombstones.pop(record.instance_id, None)
        if before is not None and before.record.address != record.address:
            del self._by_address[before.record.address]
        self._by_address[record.address] = record.instance_id
        entry = self._entries[record.instance_id] = Entry(
            record=record,
            joined_at=now if before is None else before.joined_at,
            heard_at=now,
            lease_s=lease_s,
            expires_at=now + (lease_s or 0.0),
            relayable=relayable,
        )
        self.revision += 1
        shaped = self.shape_version
        outcome = self._compare(before.record if before else None, record)
        entry.shape_version = self.shape_version
        if before is not None and self.shape_version == shaped:
            entry.shape_version = before.shape_version
        self._heard.pop(record.instance_id, None)
        self._heard[record.instance_id] = self.version
        self._gone.pop(record.instance_id, None)
        return Verdict(outcome, record.incarnation, lease_s or 0.0)

    def _compare(self, before: WorkerRecord | None, after: WorkerRecord) -> Outcome:
        """What a record changed; counts the versions up accordingly."""
        if before is None:
            self._changed()
            return "joined"
        if _shape_of(before) != _shape_of(after):
            self._changed()
            return "changed"
        if _load_of(before) != _load_of(after):
            self.version += 1
            return "changed"
        return "renewed"

    def _changed(self) -> None:
        self.version += 1
        self.revision += 1
        self.shape_version = self.version

    def _bury(self, instance_id: str, incarnation: int, now: float, taken: str | None) -> None:
        self._drop(instance_id)
        self._tombstones.pop(instance_id, None)
        while len(self._tombstones) >= self._max_workers:
            del self._tombstones[next(iter(self._tombstones))]
        until = now + TOMBSTONE_TTLS * self._ttl_s
        self._tombstones[instance_id] = _Tombstone(until, incarnation, taken)

    def _drop(self, instance_id: str) -> None:
        entry = self._entries.pop(instance_id, None)
        if entry is None:
            return
        del self._by_address[entry.record.address]
        del self._heard[instance_id]
        while len(self._gone) >= self._max_workers:
            oldest = next(iter(self._gone))
            self._gone_forgotten = self._gone.pop(oldest)
        self._gone[instance_id] = self.version + 1  # whoever drops counts the version up

    def _extend(self, by_s: float, now: float) -> None:
        """The caller was stalled: nobody could be heard, so nobody loses that time."""
        for entry in self._entries.values():
            if entry.lease_s is not None:
                entry.expires_at = min(entry.expires_at + by_s, now + entry.lease_s)
        for stone in self._tombstones.values():
            stone.until = min(stone.until + by_s, now + TOMBSTONE_TTLS * self._ttl_s)
        if self._warm_at is not None:
            self._warm_at = min(self._warm_at + by_s, now + self._ttl_s)

    def _silenced_models(self, now: float) -> frozenset[str]:
        """Models of which more than half of the workers, and at least two, fell silent."""
        all_of = Counter(_model_names(self._entries.values()))
        silent = (entry for entry in self._entries.values() if entry.silent(now))
        silent_of = Counter(_model_names(silent))
        return frozenset(
            name for name, count in silent_of.items() if count >= 2 and count > all_of[name] / 2
        )


def _model_names(entries: Iterable[Entry]) -> list[str]:
    return [name for entry in entries for name in {model.name for model in entry.record.models}]


def _served(record: WorkerRecord) -> set[tuple[str, str, int]]:
    return {(model.name, model.digest, model.context_length) for model in record.models}


def _since(versions: dict[str, int], after: int) -> list[str]:
    """The ids at `after` or later; `versions` rise."""
    found = []
    for instance_id in reversed(versions):
        if versions[instance_id] < after:
            break
        found.append(instance_id)
    return found
