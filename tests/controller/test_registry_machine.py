"""A lossy, reordering network against the registry, and what must hold whatever it does."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controller.registry import Registry
from protocol.fleet import ModelRecord, WorkerRecord

TTL_S = 5.0
SWEEP_S = 0.25
IDS = [f"w{number}" for number in range(5)]
ADDRESSES = [f"http://h:{port}" for port in range(1, 4)]


class RegistryMachine(RuleBasedStateMachine):
    """Workers push records, some are lost, kept back, doubled; time passes, sometimes in leaps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.registry = Registry(ttl_s=TTL_S, epoch="e", now=0.0, sweep_every_s=SWEEP_S)
        self.seq: Counter[str] = Counter()
        self.in_flight: list[WorkerRecord] = []
        self.heard: dict[str, float] = {}
        self.left: dict[str, float] = {}
        self.version = 0
        self.last_snapshot = self.registry.snapshot()
        self.followed = self.last_snapshot

    @rule(
        name=st.sampled_from(IDS),
        address=st.sampled_from(ADDRESSES),
        incarnation=st.integers(0, 3),
        state=st.sampled_from(["starting", "ready", "draining"]),
        queue=st.integers(0, 2),
    )
    def send(self, name: str, address: str, incarnation: int, state: str, queue: int) -> None:
        self.seq[name] += 1
        self.in_flight.append(
            WorkerRecord.model_validate(
                {
                    "instance_id": name,
                    "address": address,
                    "incarnation": incarnation,
                    "seq": self.seq[name],
                    "state": state,
                    "queue_length": queue,
                    "models": [ModelRecord(name="m")],
                }
            )
        )

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), keep=st.booleans())
    def deliver(self, data: st.DataObject, keep: bool) -> None:
        index = data.draw(st.integers(0, len(self.in_flight) - 1))
        record = self.in_flight[index] if keep else self.in_flight.pop(index)
        before = self.registry.get(record.instance_id)
        holder = self.registry.at(record.address)
        verdict = self.registry.put(record, self.now)
        newest = (record.incarnation, record.seq)
        if before is not None and newest <= (before.record.incarnation, before.record.seq):
            assert verdict.outcome == "stale"
        if verdict.accepted:
            assert self.registry.at(record.address) is self.registry.get(record.instance_id)
            self.heard[record.instance_id] = self.now
            self.left.pop(record.instance_id, None)
        elif verdict.outcome == "conflict":
            assert holder is not None
            assert verdict.incarnation == holder.record.incarnation >= record.incarnation
        if not verdict.accepted:
            assert self.registry.get(record.instance_id) is before
            assert self.registry.at(record.address) is holder

    @rule(name=st.sampled_from(IDS))
    def leave(self, name: str) -> None:
        self.registry.leave(name, self.now)
        self.left[name] = self.now
        self.heard.pop(name, None)

    @rule(name=st.sampled_from(IDS))
    def late_heartbeat_of_the_same_incarnation(self, name: str) -> None:
        entry = self.registry.get(name)
        if entry is None:
            return
        late = entry.record.model_copy(update={"seq": entry.record.seq + 1})
        self.seq[name] = max(self.seq[name], late.seq)
        self.leave(name)
        assert self.registry.put(late, self.now).outcome == "stale"

    @rule(steps=st.integers(1, 24))
    def time_passes(self, steps: int) -> None:
        for _ in range(steps):
            self.now += SWEEP_S
            for gone in self.registry.sweep(self.now):
                assert self.now - self.heard[gone] >= TTL_S

    @rule(leap=st.integers(4, 400_000))
    def controller_is_stopped_a_while(self, leap: int) -> None:
        fresh = {
            entry.record.instance_id
            for entry in self.registry.entries
            if not entry.due(self.now + 2 * SWEEP_S)
        }
        self.now += leap * SWEEP_S
        gone = self.registry.sweep(self.now)
        assert not fresh & set(gone)

    @invariant()
    def one_worker_an_address_and_no_ghosts(self) -> None:
        entries = self.registry.entries
        addresses = [entry.record.address for entry in entries]
        assert len(set(addresses)) == len(addresses)
        for entry in entries:
            assert self.registry.at(entry.record.address) is entry
            assert entry.expires_at <= self.now + TTL_S
        known = {entry.record.instance_id for entry in entries}
        assert not known & set(self.registry.snapshot().left)

    @invariant()
    def a_change_that_gateways_see_raises_the_version(self) -> None:
        snapshot = self.registry.snapshot()
        assert self.registry.version >= self.version
        assert self.registry.shape_version <= self.registry.version
        if self.registry.version == self.version:
            assert _visible(snapshot.workers) == _visible(self.last_snapshot.workers)
            assert snapshot.left == self.last_snapshot.left
            assert snapshot.complete == self.last_snapshot.complete
        self.version = self.registry.version
        self.last_snapshot = snapshot

    @rule()
    def a_gateway_asks_for_what_changed(self) -> None:
        self.followed = self.followed.updated(self.registry.changes(self.followed.version))
        whole = self.registry.snapshot()
        assert _by_id(self.followed.workers) == _by_id(whole.workers)
        assert self.followed.model_copy(update={"workers": ()}) == whole.model_copy(
            update={"workers": ()}
        )

    @invariant()
    def the_last_accepted_record_was_the_last_heard(self) -> None:
        for entry in self.registry.entries:
            assert entry.heard_at == self.heard[entry.record.instance_id]


def _visible(workers: tuple[WorkerRecord, ...]) -> list[WorkerRecord]:
    return [worker.model_copy(update={"seq": 0}) for worker in workers]


def _by_id(workers: tuple[WorkerRecord, ...]) -> dict[str, WorkerRecord]:
    return {worker.instance_id: worker for worker in workers}


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
