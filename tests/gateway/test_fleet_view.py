"""The merge of controllers' snapshots, with times passed in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet_view import KNOWN_MODEL_S, FleetView
from protocol.fleet import FleetSnapshot, ModelRecord, WorkerRecord
from tests.gateway.fakes import MODEL, record

W1 = record("w1", "http://127.0.0.1:1", incarnation=1, seq=5)
W2 = record("w2", "http://127.0.0.1:2", incarnation=1, seq=5)


def heard(
    *workers: WorkerRecord, complete: bool = True, left: tuple[str, ...] = ()
) -> FleetSnapshot:
    return FleetSnapshot(epoch="e", version=1, complete=complete, workers=workers, left=left)


def ids(view: FleetView) -> set[str]:
    return set(view.snapshot.workers)


def test_before_any_answer_it_is_empty_stale_and_not_synced() -> None:
    snapshot = FleetView(["a"]).snapshot
    assert (dict(snapshot.workers), snapshot.synced, snapshot.stale) == ({}, False, True)


def test_workers_of_all_controllers_are_merged() -> None:
    view = FleetView(["a", "b"])
    view.observe("a", heard(W1), 0)
    view.observe("b", heard(W2), 0)
    assert ids(view) == {"w1", "w2"}
    assert {w.instance_id for w in view.snapshot.serving(MODEL)} == {"w1", "w2"}


def test_the_newer_record_wins_in_whatever_order_they_come() -> None:
    newer = W1.model_copy(update={"seq": 6, "state": "draining"})
    for first, second in ((W1, newer), (newer, W1)):
        view = FleetView(["a", "b"])
        view.observe("a", heard(first), 0)
        view.observe("b", heard(second), 0)
        assert view.snapshot.workers["w1"].state == "draining"


def test_a_higher_incarnation_beats_a_higher_sequence_number() -> None:
    view = FleetView(["a"])
    view.observe("a", heard(W1.model_copy(update={"seq": 900})), 0)
    view.observe("a", heard(W1.model_copy(update={"incarnation": 2, "seq": 0})), 0)
    assert view.snapshot.workers["w1"].incarnation == 2


def test_a_restarted_worker_takes_over_its_address() -> None:
    view = FleetView(["a", "b"])
    view.observe("a", heard(W1), 0)
    reborn = record("w9", W1.address, incarnation=2)
    view.observe("b", heard(reborn), 0)
    assert ids(view) == {"w9"}
    view.observe("a", heard(W1.model_copy(update={"seq": 99})), 0)
    assert ids(view) == {"w9"}, "the old instance does not come back from a slower controller"


def test_only_ready_workers_serve() -> None:
    view = FleetView(["a"])
    for state in ("starting", "draining", "failed"):
        view.observe("a", heard(W1.model_copy(update={"state": state})), 0)
        assert view.snapshot.serving(MODEL) == ()
        assert MODEL not in view.snapshot.models
        assert view.knows(MODEL, 0)


def test_a_tombstone_removes_at_once_and_a_slower_controller_does_not_bring_it_back() -> None:
    view = FleetView(["a", "b"])
    view.observe("a", heard(W1, W2), 0)
    view.observe("b", heard(W1, W2), 0)
    view.observe("a", heard(W2, left=("w1",)), 1)
    assert ids(view) == {"w2"}
    view.observe("b", heard(W1, W2), 2)
    assert ids(view) == {"w2"}
    view.observe("a", heard(W2), 9)  # the tombstone has expired there, b still lists the worker
    view.observe("b", heard(W1, W2), 9)
    assert ids(view) == {"w2"}


def test_the_controller_that_had_the_tombstone_can_bring_a_worker_back() -> None:
    view = FleetView(["a"])
    view.observe("a", heard(W1), 0)
    view.observe("a", heard(left=("w1",)), 1)
    view.observe("a", heard(W1), 20)  # FastChat's workers keep their id when they come again
    assert ids(view) == {"w1"}


def test_a_missing_worker_is_a_suspect_and_goes_when_its_probe_fails() -> None:
    view = FleetView(["a"])
    view.observe("a", heard(W1, W2), 0)
    view.observe("a", heard(W2), 6)
    assert ids(view) == {"w1", "w2"}
    assert view.suspects() == (W1,)
    view.probed("w1", answered=False, now_s=7)
    assert ids(view) == {"w2"}


def test_a_worker_that_one_controller_still_lists_is_no_suspect() -> None:
    view = FleetView(["a", "b"])
    view.observe("a", heard(W1), 0)
    view.observe("b", heard(W1), 0)
    view.observe("a", heard(), 6)
    assert view.suspects() == ()
    view.probed("w1", answered=False, now_s=6)
    assert ids(view) == {"w1"}, "a failed probe alone removes nothing"
    view.unreachable("b", 7)
    assert view.suspects() == (W1,), "what an unreachable controller said does not count"


def test_a_suspect_of_most_controllers_is_left_out_while_it_does_not_answer() -> None:
    view = FleetView(["a", "b", "c"])
    for controller in "abc":
        view.observe(controller, heard(W1, W2), 0)
    view.observe("a", heard(W2), 6)
    assert view.suspects() == (), "one of three"
    view.observe("b", heard(W2), 6)
    assert view.suspects() == (W1,)
    view.probed("w1", answered=False, now_s=7)
    newer = W1.model_copy(update={"seq": 9})
    view.observe("c", heard(newer, W2), 8)
    assert ids(view) == {"w2"}, "the last controller that hears of it does not bring it back"
    assert view.suspects() == (newer,), "it is probed on"
    view.probed("w1", answered=True, now_s=9)
    assert ids(view) == {"w1", "w2"}
    view.probed("w1", answered=False, now_s=10)
    view.observe("a", heard(newer, W2), 11)
    assert ids(view) == {"w1", "w2"}, "as soon as most list it, no probe is needed"


def test_of_two_instances_with_one_incarnation_the_one_last_heard_of_has_the_address() -> None:
    """Neither controller knows of both; one still lists the process that is gone."""
    view = FleetView(["a", "b"])
    view.observe("a", heard(W1), 0)
    reborn = record("w9", W1.address, incarnation=1)
    view.observe("b", heard(reborn), 1)
    assert ids(view) == {"w9"}
    view.observe("a", heard(W1), 2)
    assert ids(view) == {"w9"}, "the old one has said nothing since"


def test_who_waits_for_an_address_gets_it_when_its_holder_is_gone() -> None:
    """A worker and the only controller restarted at once: nobody knows the old incarnation."""
    view = FleetView(["a"])
    view.observe("a", heard(W1), 0)
    reborn = record("w9", W1.address, incarnation=0)
    view.observe("a", heard(reborn), 1)
    assert ids(view) == {"w1"}
    view.probed("w1", answered=False, now_s=1)
    assert ids(view) == {"w9"}


def test_a_restarted_controller_that_heard_a_late_heartbeat_does_not_undo_a_goodbye() -> None:
    view = FleetView(["a"])
    view.observe("a", heard(W1), 0)
    view.observe("a", heard(left=("w1",)), 1)
    late = heard(W1.model_copy(update={"seq": 6}), complete=False).model_copy(update={"epoch": "f"})
    view.observe("a", late, 3)
    assert ids(view) == set()
    view.observe("a", heard(W1.model_copy(update={"seq": 99})), 30)
    assert ids(view) == {"w1"}, "much later it can only be alive"


def test_fastchats_workers_start_to_count_anew_with_each_controller() -> None:
    view = FleetView(["a"])
    view.observe("a", heard(record("w1", wire="fastchat", seq=57)), 0)
    other = (ModelRecord(name="another"),)
    view.observe("a", heard(record("w1", wire="fastchat", seq=0, models=other)), 1)
    assert view.snapshot.serving("another")


def test_an_incomplete_controller_adds_and_removes_nothing() -> None:
    view = FleetView(["a"])
    view.observe("a", heard(W1), 0)
    view.observe("a", heard(W2, complete=False), 1)
    assert ids(view) == {"w1", "w2"}
    assert view.suspects() == ()


def test_with_every_controller_gone_everything_is_kept_and_stale() -> None:
    view = FleetView(["a", "b"])
    view.observe("a", heard(W1), 0)
    view.observe("b", heard(W2), 0)
    view.unreachable("a", 1)
    assert not view.snapshot.stale
    view.unreachable("b", 1)
    assert view.snapshot.stale
    assert ids(view) == {"w1", "w2"}
    assert view.suspects() == ()
    view.observe("a", heard(W1, complete=False), 2)
    assert not view.snapshot.stale


def test_a_model_is_known_for_a_while_after_its_last_worker() -> None:
    view = FleetView(["a"])
    view.observe("a", heard(W1), 0)
    view.observe("a", heard(left=("w1",)), 10)
    assert view.knows(MODEL, 10 + KNOWN_MODEL_S / 2)
    assert not view.knows(MODEL, 11 + KNOWN_MODEL_S)
    assert not view.knows("other", 0)


def test_the_shortest_context_of_a_models_workers_is_shown() -> None:
    def with_context(worker: WorkerRecord, length: int) -> WorkerRecord:
        model = ModelRecord(name=MODEL, context_length=length)
        return worker.model_copy(update={"models": (model,)})

    view = FleetView(["a"])
    view.observe("a", heard(with_context(W1, 4096), with_context(W2, 2048)), 0)
    assert view.snapshot.models[MODEL].context_length == 2048
    view.observe("a", heard(with_context(W1, 0), with_context(W2, 2048)), 0)
    assert view.snapshot.models[MODEL].context_length == 2048


def test_a_snapshot_does_not_change_under_its_reader() -> None:
    view = FleetView(["a"])
    view.observe("a", heard(W1), 0)
    before = view.snapshot
    view.observe("a", heard(W2, left=("w1",)), 1)
    assert set(before.workers) == {"w1"}


records = st.builds(
    lambda number, incarnation, seq: record(
        f"w{number}", f"http://127.0.0.1:{number}", incarnation=incarnation, seq=seq
    ),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(0, 3),
)
steps = st.lists(
    st.tuples(st.sampled_from("ab"), st.lists(records, max_size=3), st.booleans()), max_size=12
)


@given(steps)
def test_a_record_never_goes_back_and_only_tombstones_and_probes_remove(
    sent: list[tuple[str, list[WorkerRecord], bool]],
) -> None:
    view = FleetView("ab")
    newest: dict[str, tuple[int, int]] = {}
    for now, (controller, workers, complete) in enumerate(sent):
        view.observe(controller, heard(*workers, complete=complete), now)
        for worker in workers:
            stamp = (worker.incarnation, worker.seq)
            newest[worker.instance_id] = max(stamp, newest.get(worker.instance_id, stamp))
        found = {i: (w.incarnation, w.seq) for i, w in view.snapshot.workers.items()}
        assert found == newest
