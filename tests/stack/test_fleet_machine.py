"""Registries and fleet views over a lossy network in virtual time, and what holds whatever happens.

The parts are the real `Registry` and `FleetView`; workers, the long polls and probes around them
are small models of `worker/registration.py`, `controller/feed.py` and `gateway/fleet_watch.py`.
Messages are lost, doubled, delayed and so reordered; links are cut; processes die, hang, drain,
are reborn at the same address, controllers restart, anybody's process is stopped for a while.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controller.registry import Registry, Verdict
from gateway.fleet_view import FleetView
from protocol.fleet import FleetSnapshot, ModelRecord, WorkerRecord, WorkerState

TTL_S = 5.0
SWEEP_S = 0.25
BEAT_S = 1.0
POLL_S, POLL_SLACK_S = 5.0, 3.0
PROBE_S, PROBE_TIMEOUT_S = 0.25, 0.5
MAX_DELAY_S = 2.0
AFTERMATH_S = 30.0
"""How long a gap in the heartbeats may have consequences: leases, a lost poll, the next one."""
HEALED_S = 30.0
"""All is as it should be so long after the last fault: polls that were lost time out (8 s), the
longest leases end (a held worker's: 10 s), tombstones are forgotten (10 s)."""


class Process:
    """What can be stopped (as by SIGSTOP): its messages and timers wait meanwhile."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.stopped_until = 0.0

    def when_running(self, act: Callable[[], None]) -> None:
        """Act now, or when it goes on; never once it is dead."""
        if not self.alive:
            return
        if self.world.now < self.stopped_until:
            self.world.at(self.stopped_until, lambda: self.when_running(act))
        else:
            act()

    def every(self, period_s: float, act: Callable[[], None]) -> None:
        """Act again and again, a little off the beat, while it lives."""

        def again() -> None:
            act()
            self.after(period_s * self.world.random.uniform(0.9, 1.1), again)

        self.after(period_s * self.world.random.random(), again)

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        self.world.at(self.world.now + delay_s, lambda: self.when_running(act))

    def send(self, to: Process, act: Callable[[], None]) -> None:
        """A message: `act` happens at `to`, once, twice or never."""
        world = self.world
        for _ in range(1 + (world.random.random() < world.doubled)):
            if world.random.random() < world.lost:
                continue
            delay_s = world.random.random() ** 3 * world.delay_s

            def arrive() -> None:
                if frozenset((self.name, to.name)) not in world.cut:
                    to.when_running(act)

            world.at(world.now + delay_s, arrive)


class Worker(Process):
    """Beats, outranks who holds its address, drains and leaves."""

    def __init__(self, world: World, number: int, address: str) -> None:
        super().__init__(world, f"w{number}")
        self.address = address
        self.state: WorkerState = "ready"
        self.incarnation = self.seq = 0
        self.said_goodbye = False
        self.heard: dict[str, float] = {}
        self.gaps: dict[str, float] = {}
        self.contested_at = -AFTERMATH_S
        for controller in list(world.controllers):
            self.every(BEAT_S, lambda name=controller: self.beat(name))

    def record(self) -> WorkerRecord:
        self.seq += 1
        return WorkerRecord(
            instance_id=self.name,
            incarnation=self.incarnation,
            seq=self.seq,
            address=self.address,
            models=(ModelRecord(name="m", digest="d"),),
            state=self.state,
        )

    def beat(self, name: str) -> None:
        record, controller = self.record(), self.world.controllers[name]

        def put() -> None:
            verdict = controller.put(self, record)
            if verdict.outcome == "conflict":
                controller.send(self, lambda: self.outrank(verdict.incarnation, name))

        self.send(controller, put)

    def outrank(self, incarnation: int, name: str) -> None:
        if self.incarnation <= incarnation:
            self.incarnation = incarnation + 1
            self.beat(name)

    def drain(self) -> None:
        self.state = "draining"
        for name in self.world.controllers:
            self.beat(name)
        self.after(0.5, self.leave)

    def leave(self) -> None:
        self.said_goodbye = True
        for controller in self.world.controllers.values():
            self.send(controller, lambda to=controller: to.leave(self))
        self.alive = False


class Controller(Process):
    """A registry with its sweep and its parked polls."""

    def __init__(self, world: World, name: str, epoch: int) -> None:
        super().__init__(world, name)
        self.number = epoch
        self.paused_s = 0.0
        self.began = world.now
        self.registry = Registry(
            ttl_s=TTL_S, epoch=f"{name}-{epoch}", now=world.now, sweep_every_s=SWEEP_S
        )
        self.epoch = f"{name}-{epoch}"
        self.parked: list[tuple[int, Callable[[], None]]] = []
        self.version = 0
        self.after(SWEEP_S, self.sweep)

    @property
    def awake_s(self) -> float:
        """The time in which it could hear something."""
        return self.world.now - self.paused_s

    def put(self, worker: Worker, record: WorkerRecord) -> Verdict:
        verdict = self.registry.put(record, self.world.now)
        worker.heard[self.name] = self.awake_s
        victim = self.world.at_address(record.address)
        if verdict.accepted and victim not in (None, worker):
            victim.contested_at = self.world.now  # by the last words of a dead process
        self.publish()
        return verdict

    def leave(self, worker: Worker) -> None:
        self.registry.leave(worker.name, self.world.now)
        self.publish()

    def sweep(self) -> None:
        for name in self.registry.sweep(self.world.now):
            since = max(self.world.workers[name].heard.get(self.name, -math.inf), self.began)
            assert self.awake_s - since > TTL_S / 2, f"{name} expired, but its heartbeats arrived"
        self.publish()
        self.after(SWEEP_S, self.sweep)

    def poll(self, epoch: str, after: int, answer: Callable[[], None]) -> None:
        if epoch != self.epoch or self.registry.version > after:
            answer()
            return
        entry = (after, answer)
        self.parked.append(entry)
        self.after(POLL_S, lambda: self.answer(entry))

    def publish(self) -> None:
        assert self.registry.version >= self.version
        self.version = self.registry.version
        for entry in [each for each in self.parked if self.version > each[0]]:
            self.answer(entry)

    def answer(self, entry: tuple[int, Callable[[], None]]) -> None:
        if entry in self.parked:
            self.parked.remove(entry)
            entry[1]()


class Gateway(Process):
    """A view with a poll to each controller and probes of suspects."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.view = FleetView(world.controllers)
        self.polls = itertools.count()
        self.polling: dict[str, int] = {}
        self.last: dict[str, FleetSnapshot | None] = {}
        self.had: dict[str, tuple[int, int]] = {}
        self.told_left: set[str] = set()
        for controller in list(world.controllers):
            self.poll(controller)
        self.every(PROBE_S, self.probe)

    def poll(self, name: str) -> None:
        world, number = self.world, next(self.polls)
        self.polling[name] = number
        controller, last = self.world.controllers[name], self.last.get(name)
        epoch, after = (last.epoch, last.version) if last is not None else ("", 0)

        def answered(heard: FleetSnapshot) -> None:
            if self.polling[name] == number:
                self.polling[name] = -1
                known = self.last.get(name)
                heard = known.updated(heard) if known is not None else heard
                self.last[name] = heard
                self.told_left |= {id_ for id_ in heard.left if world.workers[id_].said_goodbye}
                self.view.observe(name, heard, self.world.now)
                self.check()
                self.after(0.05, lambda: self.poll(name))

        def answer() -> None:
            registry = controller.registry
            told = registry.changes(after) if epoch == controller.epoch else registry.snapshot()
            controller.send(self, lambda: answered(told))

        def too_late() -> None:
            if self.polling[name] == number:
                self.polling[name] = -1
                self.last[name] = None
                self.view.unreachable(name, self.world.now)
                self.check()
                self.after(self.world.random.uniform(0.1, 2.0), lambda: self.poll(name))

        self.send(controller, lambda: controller.poll(epoch, after, answer))
        self.after((POLL_S if last is not None else 0.0) + POLL_SLACK_S, too_late)

    def probe(self) -> None:
        for suspect in self.view.suspects():
            heard: list[bool] = []
            there = self.world.at_address(suspect.address)
            if there is not None:
                same = there.name == suspect.instance_id

                def reply(there: Worker = there, same: bool = same, to: list[bool] = heard) -> None:
                    there.send(self, lambda: to.append(same))

                self.send(there, reply)

            def conclude(name: str = suspect.instance_id, found: list[bool] = heard) -> None:
                self.view.probed(name, bool(found and found[0]), self.world.now)
                self.check()

            self.after(PROBE_TIMEOUT_S, conclude)

    def check(self) -> None:
        """What holds at every moment of a view."""
        world, workers = self.world, self.view.snapshot.workers
        addresses = [worker.address for worker in workers.values()]
        assert len(set(addresses)) == len(addresses), "two instances on one address"
        for name, record in workers.items():
            newest = (record.incarnation, record.seq)
            assert newest >= self.had.get(name, newest), "a record went back"
            assert name not in self.told_left, f"{name} came back after its goodbye"
        for name in self.had.keys() - workers.keys():
            worker = world.workers[name]
            if worker.alive and worker.state == "ready":
                self.check_removal(worker)
        self.had = {name: (one.incarnation, one.seq) for name, one in workers.items()}

    def check_removal(self, worker: Worker) -> None:
        """Most of the controllers that it follows have missed heartbeats of that worker.

        Late heartbeats of the process that had its address before may displace it for a moment.
        """
        if self.world.now - worker.contested_at < AFTERMATH_S:
            return
        told = {name for name, one in self.last.items() if one is not None and one.complete}
        missed = {
            name for name in told if self.world.now - worker.gaps.get(name, 0.0) < AFTERMATH_S
        }
        reason = f"{worker.name} was removed, but its heartbeats arrived"
        assert 2 * len(missed) > len(told), reason


class World:
    """Clock, network and everybody in it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 1000.0
        self.lost = self.doubled = 0.0
        self.delay_s = 0.05
        self.cut: set[frozenset[str]] = set()
        self.workers: dict[str, Worker] = {}
        self.controllers: dict[str, Controller] = {}
        self.gateways: list[Gateway] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()
        self.now = until

    def at_address(self, address: str) -> Worker | None:
        """The process that listens there."""
        there = (one for one in self.workers.values() if one.alive and one.address == address)
        return next(there, None)

    def start_worker(self, address: str) -> None:
        worker = Worker(self, len(self.workers), address)
        self.workers[worker.name] = worker

    def start_controller(self, name: str) -> None:
        before = self.controllers.get(name)
        epoch = 0
        if before is not None:
            before.alive = False
            epoch = before.number + 1
        self.controllers[name] = Controller(self, name, epoch)

    def note_gaps(self) -> None:
        """Which workers some controller has not heard for half a lease, or never yet."""
        for worker in self.workers.values():
            for name, controller in self.controllers.items():
                since = max(worker.heard.get(name, -math.inf), controller.began)
                never = name not in worker.heard
                if worker.alive and (never or controller.awake_s - since > TTL_S / 2):
                    worker.gaps[name] = self.now
        self.at(self.now + SWEEP_S, self.note_gaps)


SOON = st.sampled_from([0.0, 0.3, 1.0, 4.0])
"""Seconds after a fault until the next one."""
ADDRESSES = [f"http://h:{port}" for port in range(1, 5)]


class FleetMachine(RuleBasedStateMachine):
    """Faults one after the other, and time between them."""

    @initialize(seed=st.integers(0, 2**32), controllers=st.integers(1, 3))
    def start(self, seed: int, controllers: int) -> None:
        self.world = World(seed)
        for number in range(controllers):
            self.world.start_controller(f"c{number}")
        for number in range(2):
            self.world.gateways.append(Gateway(self.world, f"g{number}"))
        for address in ADDRESSES[:3]:
            self.world.start_worker(address)
        self.world.note_gaps()
        self.world.run(3.0)

    def running(self) -> list[Worker]:
        return [one for one in self.world.workers.values() if one.alive and one.state == "ready"]

    @rule(seconds=st.sampled_from([3.0, 6.0, 12.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(
        lost=st.sampled_from([0.0, 0.1, 0.4]),
        doubled=st.sampled_from([0.0, 0.5]),
        delay_s=st.sampled_from([0.05, 0.6, MAX_DELAY_S]),
    )
    def the_network_is(self, lost: float, doubled: float, delay_s: float) -> None:
        self.world.lost, self.world.doubled, self.world.delay_s = lost, doubled, delay_s

    @precondition(lambda self: self.running())
    @rule(data=st.data(), then_s=SOON)
    def a_link_is_cut(self, data: st.DataObject, then_s: float) -> None:
        world, workers = self.world, [worker.name for worker in self.running()]
        server = data.draw(st.sampled_from([*world.controllers, *workers]))
        clients = [gateway.name for gateway in world.gateways]
        clients += workers if server in world.controllers else []
        world.cut.add(frozenset((data.draw(st.sampled_from(clients)), server)))
        world.run(then_s)

    @rule()
    def links_are_whole_again(self) -> None:
        self.world.cut.clear()

    @precondition(lambda self: self.running())
    @rule(data=st.data(), how=st.sampled_from(["kill", "restart", "drain", "stop"]), then_s=SOON)
    def a_worker_ends_or_hangs(self, data: st.DataObject, how: str, then_s: float) -> None:
        worker = data.draw(st.sampled_from(self.running()))
        if how == "stop":
            worker.stopped_until = self.world.now + 8.0
        elif how == "drain":
            worker.drain()
        else:
            worker.alive = False
        if how == "restart":
            self.world.start_worker(worker.address)
        self.world.run(then_s)

    @rule(address=st.sampled_from(ADDRESSES), then_s=SOON)
    def a_worker_starts(self, address: str, then_s: float) -> None:
        if self.world.at_address(address) is None:
            self.world.start_worker(address)
        self.world.run(then_s)

    @rule(data=st.data(), then_s=SOON)
    def controllers_restart(self, data: st.DataObject, then_s: float) -> None:
        """One, or all at once."""
        names = sorted(self.world.controllers)
        chosen = data.draw(st.sampled_from([names, *([name] for name in names)]))
        for name in chosen:
            self.world.start_controller(name)
        self.world.run(then_s)

    @rule(data=st.data(), seconds=st.sampled_from([1.0, 7.0, 20.0]), then_s=SOON)
    def a_process_is_stopped_a_while(
        self, data: st.DataObject, seconds: float, then_s: float
    ) -> None:
        world = self.world
        process = data.draw(st.sampled_from([*world.controllers.values(), *world.gateways]))
        if world.now >= process.stopped_until:
            process.stopped_until = world.now + seconds
            if isinstance(process, Controller):
                process.paused_s += seconds
        world.run(then_s)

    @rule()
    def all_heals_and_every_view_is_the_truth(self) -> None:
        world = self.world
        world.cut.clear()
        world.lost = world.doubled = 0.0
        world.delay_s = 0.05
        everybody = [*world.controllers.values(), *world.gateways, *world.workers.values()]
        world.run(max(0.0, *(one.stopped_until - world.now for one in everybody)) + HEALED_S)
        truth = {one.name: one.address for one in self.running()}
        for gateway in world.gateways:
            snapshot = gateway.view.snapshot
            assert {id_: one.address for id_, one in snapshot.workers.items()} == truth
            assert {one.instance_id for one in snapshot.serving("m")} == truth.keys()
            assert not snapshot.stale
            assert gateway.view.suspects() == ()

    @invariant()
    def each_view_holds_together(self) -> None:
        for gateway in self.world.gateways:
            gateway.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.all_heals_and_every_view_is_the_truth()


TestFleetMachine = FleetMachine.TestCase
TestFleetMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
