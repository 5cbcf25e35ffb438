"""The registry's rules, one cause each, on a virtual clock."""

from __future__ import annotations

from typing import Any

import pytest

from controller.registry import Registry
from protocol.errors import TriremeError
from protocol.fleet import Load, ModelRecord, WorkerRecord

TTL_S = 5.0
SWEEP_S = 0.25


def record(name: str = "w1", **fields: Any) -> WorkerRecord:
    values: dict[str, Any] = {
        "instance_id": name,
        "address": f"http://{name}:21002",
        "models": (ModelRecord(name="m"),),
    }
    return WorkerRecord(**(values | fields))


class Bench:
    """A registry with a clock that sweeps on time."""

    def __init__(self, **options: Any) -> None:
        self.now = 100.0
        self.registry = Registry(
            ttl_s=TTL_S, epoch="e", now=self.now, sweep_every_s=SWEEP_S, **options
        )

    def put(self, worker: WorkerRecord) -> str:
        return self.registry.put(worker, self.now).outcome

    def run(self, seconds: float) -> list[str]:
        """Let time pass with sweeps on time; the ids that expired."""
        gone = []
        for _ in range(round(seconds / SWEEP_S)):
            self.now += SWEEP_S
            gone += self.registry.sweep(self.now)
        return gone

    @property
    def ids(self) -> list[str]:
        return [worker.instance_id for worker in self.registry.snapshot().workers]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_newer_sequence_number_is_accepted_and_an_older_one_is_stale(bench: Bench) -> None:
    assert bench.put(record(seq=5)) == "joined"
    assert bench.put(record(seq=5)) == "stale"
    assert bench.put(record(seq=4, queue_length=9)) == "stale"
    assert bench.put(record(seq=6)) == "renewed"
    assert bench.put(record(incarnation=1, seq=0)) == "changed"
    assert bench.registry.snapshot().workers[0].queue_length == 0


def test_a_worker_without_heartbeats_lives_for_its_lease(bench: Bench) -> None:
    bench.put(record())
    assert bench.run(TTL_S - SWEEP_S) == []
    assert bench.run(SWEEP_S) == ["w1"]
    assert bench.ids == []


def test_heartbeats_keep_a_worker_alive(bench: Bench) -> None:
    for seq in range(30):
        bench.put(record(seq=seq))
        assert bench.run(1.0) == []


def test_a_worker_may_ask_for_a_lease_of_its_own(bench: Bench) -> None:
    bench.put(record(ttl_ms=20_000))
    assert bench.run(19) == []
    assert bench.run(1) == ["w1"]


def test_the_second_process_on_an_address_is_told_the_stored_incarnation(bench: Bench) -> None:
    bench.put(record("old", incarnation=3, address="http://h:1"))
    verdict = bench.registry.put(record("new", address="http://h:1"), bench.now)
    assert (verdict.outcome, verdict.incarnation, verdict.accepted) == ("conflict", 3, False)
    assert bench.put(record("new", incarnation=4, address="http://h:1")) == "joined"
    assert bench.ids == ["new"]
    assert bench.registry.snapshot().left == ("old",)


def test_a_displaced_process_does_not_fight_for_its_address(bench: Bench) -> None:
    bench.put(record("old", address="http://h:1"))
    bench.put(record("new", incarnation=1, address="http://h:1"))
    for seq in range(40):
        assert bench.put(record("old", incarnation=seq, seq=seq, address="http://h:1")) == "stale"
        assert bench.put(record("new", incarnation=1, seq=seq + 1, address="http://h:1"))
        bench.run(1.0)
    assert bench.ids == ["new"]


def test_a_displaced_process_returns_when_its_address_is_free(bench: Bench) -> None:
    bench.put(record("old", address="http://h:1"))
    bench.put(record("new", incarnation=1, address="http://h:1"))
    bench.registry.leave("new", bench.now)
    assert bench.put(record("old", seq=1, address="http://h:1")) == "joined"


def test_an_address_is_free_again_when_its_worker_moves(bench: Bench) -> None:
    bench.put(record("a", address="http://h:1"))
    bench.put(record("a", seq=1, address="http://h:2"))
    assert bench.put(record("b", address="http://h:1")) == "joined"
    assert bench.put(record("c", address="http://h:2")) == "conflict"


def test_a_late_heartbeat_does_not_resurrect_who_left(bench: Bench) -> None:
    bench.put(record())
    assert bench.registry.leave("w1", bench.now)
    bench.run(2 * TTL_S - 1)
    assert bench.registry.snapshot().left == ("w1",)
    assert bench.put(record(seq=9)) == "stale"
    bench.run(2 * TTL_S - 1)
    assert bench.put(record(seq=10)) == "stale"


def test_a_tombstone_crumbles_after_two_leases(bench: Bench) -> None:
    assert not bench.registry.leave("w1", bench.now)
    bench.run(2 * TTL_S)
    assert bench.registry.snapshot().left == ()
    assert bench.put(record(seq=9)) == "joined"


def test_a_goodbye_is_final_whatever_the_incarnation(bench: Bench) -> None:
    """A process has one instance id: what comes later was sent before."""
    bench.put(record())
    bench.registry.leave("w1", bench.now)
    assert bench.put(record(incarnation=1)) == "stale"
    assert bench.registry.snapshot().left == ("w1",)


def test_a_started_controller_is_warming_for_one_lease(bench: Bench) -> None:
    before = bench.registry.version
    bench.run(TTL_S - SWEEP_S)
    assert not bench.registry.snapshot().complete
    bench.run(SWEEP_S)
    assert bench.registry.snapshot().complete
    assert bench.registry.version > before


def test_a_stalled_controller_blames_nobody(bench: Bench) -> None:
    bench.put(record())
    bench.run(4.0)
    bench.now += 3600
    assert bench.registry.sweep(bench.now) == []
    assert bench.run(0.75) == []
    assert bench.run(0.5) == ["w1"]


def test_a_stall_gives_no_longer_lease_than_a_heartbeat_would(bench: Bench) -> None:
    bench.now += 60
    bench.put(record())
    bench.registry.sweep(bench.now)
    assert bench.run(TTL_S) == ["w1"]


def test_most_of_a_model_silent_at_once_is_held_one_lease_more(bench: Bench) -> None:
    for name in "abc":
        bench.put(record(name))
        bench.run(0.25)
    bench.run(3.0)
    bench.put(record("c", seq=1))
    assert bench.run(3.0) == []
    assert bench.registry.held == 2
    assert bench.ids == ["a", "b", "c"]
    bench.put(record("c", seq=2))
    bench.put(record("a", seq=1))
    assert bench.registry.held == 1
    assert bench.run(4.75) == ["b"]
    assert bench.registry.held == 0


def test_one_dead_worker_is_never_held(bench: Bench) -> None:
    bench.put(record("a"))
    bench.put(record("b"))
    bench.run(3.0)
    bench.put(record("b", seq=1))
    assert bench.run(2.0) == ["a"]


def test_a_held_worker_is_chosen_only_when_no_other_is_left(bench: Bench) -> None:
    for name in "abc":
        bench.put(record(name))
    bench.run(3.0)
    bench.put(record("c", seq=1))
    bench.run(2.0)
    assert [entry.record.instance_id for entry in bench.registry.ready("m")] == ["c"]
    bench.registry.leave("c", bench.now)
    assert len(bench.registry.ready("m")) == 2


def test_only_ready_workers_of_the_model_are_ready(bench: Bench) -> None:
    bench.put(record("a", state="draining"))
    bench.put(record("b", models=(ModelRecord(name="other"),)))
    bench.put(record("c", state="starting"))
    assert bench.registry.ready("m") == []
    assert [entry.record.instance_id for entry in bench.registry.ready()] == ["b"]


def test_versions_tell_shape_from_load_from_mere_renewal(bench: Bench) -> None:
    registry = bench.registry

    def grown() -> tuple[bool, bool, bool]:
        version, shape, revision = registry.version, registry.shape_version, registry.revision
        bench.put(next(records))
        return (
            version < registry.version,
            shape < registry.shape_version,
            revision < registry.revision,
        )

    records = iter(
        [
            record(),
            record(seq=1),
            record(seq=2, load=Load(running=1), queue_length=1),
            record(seq=3, state="draining"),
            record(seq=3),
        ]
    )
    assert grown() == (True, True, True)
    assert grown() == (False, False, True)
    assert grown() == (True, False, True)
    assert grown() == (True, True, True)
    assert grown() == (False, False, False)


def test_a_full_registry_refuses_newcomers_and_keeps_its_own() -> None:
    bench = Bench(max_workers=2)
    bench.put(record("a"))
    bench.put(record("b"))
    with pytest.raises(TriremeError, match="keeps 2 workers") as caught:
        bench.put(record("c"))
    assert caught.value.code == "overloaded"
    assert bench.put(record("a", seq=1)) == "renewed"
    assert bench.put(record("c", incarnation=1, address="http://a:21002")) == "joined"


def test_tombstones_are_bounded() -> None:
    bench = Bench(max_workers=3)
    for number in range(10):
        bench.registry.leave(f"w{number}", bench.now)
    assert bench.registry.snapshot().left == ("w7", "w8", "w9")


def fastchat(**fields: Any) -> WorkerRecord:
    return record("fc", wire="fastchat", **fields)


def test_a_fastchat_worker_beats_by_its_address(bench: Bench) -> None:
    assert not bench.registry.beat("http://fc:21002", 1, bench.now)
    bench.registry.put_leased(fastchat(), bench.now, lease_s=90.0)
    bench.run(60)
    assert bench.registry.beat("http://fc:21002", 7, bench.now)
    assert bench.registry.snapshot().workers[0].queue_length == 7
    assert bench.run(89) == []
    assert bench.run(1) == ["fc"]


def test_a_fastchat_worker_without_heartbeat_check_never_expires(bench: Bench) -> None:
    bench.registry.put_leased(fastchat(), bench.now, lease_s=None)
    assert bench.run(300) == []
    bench.now += 1e6
    assert bench.registry.sweep(bench.now) == []


def test_a_fastchat_registration_is_always_the_newest(bench: Bench) -> None:
    bench.put(record("native", incarnation=2, seq=8, address="http://fc:21002"))
    bench.registry.put_leased(fastchat(), bench.now, lease_s=90.0)
    assert bench.ids == ["fc"]
    other = fastchat(models=(ModelRecord(name="other"),))
    assert bench.registry.put_leased(other, bench.now, lease_s=90.0).outcome == "changed"
    assert bench.registry.ready("other")
    assert bench.registry.leave("fc", bench.now)
    assert bench.registry.put_leased(fastchat(), bench.now, lease_s=90.0).outcome == "joined"


def test_a_native_worker_is_not_renewed_by_a_fastchat_heartbeat(bench: Bench) -> None:
    bench.put(record())
    assert not bench.registry.beat("http://w1:21002", 3, bench.now)


def test_changes_since_a_version_are_what_was_heard_and_what_is_gone(bench: Bench) -> None:
    registry = bench.registry
    for name in ("a", "b", "c"):
        bench.put(record(name))
    known = registry.snapshot()
    bench.put(record("b", seq=1, queue_length=4))
    bench.put(record("d"))
    registry.leave("a", bench.now)
    told = registry.changes(known.version)
    assert {worker.instance_id for worker in told.workers} == {"b", "c", "d"}, "c came last"
    assert (told.since, told.gone, told.left) == (known.version, ("a",), ("a",))
    followed = known.updated(told)
    assert [worker.instance_id for worker in followed.workers] == ["b", "c", "d"]
    assert followed.workers[0].queue_length == 4
    assert followed.workers[1] is known.workers[2] or followed.workers[1] == known.workers[2]
    assert (followed.since, followed.gone, followed.version) == (None, (), registry.version)


def test_what_changed_too_long_ago_is_told_whole() -> None:
    bench = Bench(max_workers=2)
    first = bench.registry.version
    for number in range(5):
        bench.put(record(f"w{number}"))
        bench.registry.leave(f"w{number}", bench.now)
    told = bench.registry.changes(first)
    assert (told.since, told.gone) == (None, ())
    assert bench.registry.changes(bench.registry.version).since == bench.registry.version
