"""Steps that raise: who fails, who goes on with the same tokens, and when the engine gives up."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest

from tests.worker.engine.hash_runner import HashRunner, Step, core, jobs, outputs_of
from worker.engine.blocks import BlockPool
from worker.engine.engine import EngineCore, JobFailed
from worker.engine.faults import EngineBroken, OutOfMemory, StepCaps
from worker.engine.grammar import Matcher
from worker.engine.protocol import Job, SequenceParams
from worker.engine.scheduler import Scheduled
from worker.engine.steps import RowResult

Batch: TypeAlias = SequenceOf[Scheduled]
Fault: TypeAlias = Callable[[Batch], Exception | None]
"""What a step of this batch raises."""

EVIL = -7
BOTH = pytest.mark.parametrize("overlap", [False, True], ids=["one by one", "overlapped"])


@dataclass
class Unread(Step):
    """A step whose results raise when they are read."""

    fault: Exception | None = None

    def results(self) -> list[RowResult]:
        if self.fault is not None:
            raise self.fault
        return super().results()


@dataclass
class FaultyRunner(HashRunner):
    """Raises what `at_launch` says of a batch, and when its results are read what `at_read` says;
    `broken` says what a check of the model raises."""

    at_launch: Fault = lambda _batch: None
    at_read: Fault = lambda _batch: None
    broken: Exception | None = None
    batches: int = 0
    checks: int = 0

    def launch(self, batch: Batch) -> Step:
        self.batches += 1
        if (fault := self.at_launch(batch)) is not None:
            raise fault
        made = super().launch(batch)
        return Unread(made.found, made.waits, self.at_read(batch))

    def run(self, batch: Batch) -> list[RowResult]:
        return self.launch(batch).results()

    def check(self) -> None:
        self.checks += 1
        if self.broken is not None:
            raise self.broken


def evil(number: int = 0, max_tokens: int = 8) -> Job:
    """A job that `of_evil` raises for."""
    return Job(f"evil {number}", [EVIL, number, 3], SequenceParams(max_tokens=max_tokens))


def of_evil(error: type[Exception], behind: int = 0) -> Fault:
    """Raises for a batch with an evil sequence of more than so many tokens."""

    def fault(batch: Batch) -> Exception | None:
        found = any(
            item.seq.token_ids[0] == EVIL and item.start + item.num_new > behind for item in batch
        )
        return error("evil") if found else None

    return fault


def now_and_then(error: type[Exception], each: int, least: int = 2) -> Fault:
    """Raises at each so-manyth batch of so many or more, whatever they are."""
    count = 0

    def fault(batch: Batch) -> Exception | None:
        nonlocal count
        count += len(batch) >= least
        return error("now and then") if len(batch) >= least and count % each == 0 else None

    return fault


def beyond(tokens: int = 10**6, sequences: int = 10**6) -> Fault:
    """There is no memory for larger steps."""

    def fault(batch: Batch) -> Exception | None:
        too_large = sum(item.num_new for item in batch) > tokens or len(batch) > sequences
        return OutOfMemory() if too_large else None

    return fault


def undisturbed(work: list[Job]) -> dict[Any, Any]:
    return outputs_of(core(HashRunner(), overlap=False), work)


def all_free(of: EngineCore) -> bool:
    load = of.load()
    return load.kv_free == 1.0 and load.running == load.waiting == 0


# ---- exceptions ---------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("where", ["at_launch", "at_read"])
@pytest.mark.parametrize("behind", [0, 5], ids=["in its prefill", "in its decode"])
@pytest.mark.parametrize("seed", range(4))
def test_an_exception_ends_the_request_that_causes_it_and_no_other(
    overlap: bool, where: str, behind: int, seed: int
) -> None:
    work = jobs(seed)
    expected = undisturbed(work)
    runner = FaultyRunner(**{where: of_evil(ValueError, behind)})  # type: ignore[arg-type]
    of = core(runner, overlap)
    found = outputs_of(of, [*work[:3], evil(), *work[3:]])
    assert found.pop("evil 0") == ["internal_error"]
    told = found.pop(("evil 0", 0), [])
    assert len(told) == max(0, behind - 2)
    assert found == expected
    assert all_free(of)


@BOTH
@pytest.mark.parametrize("where", ["at_launch", "at_read"])
@pytest.mark.parametrize("each", [2, 3, 7])
@pytest.mark.parametrize("seed", range(4))
def test_what_does_not_raise_again_fails_nobody(
    overlap: bool, where: str, each: int, seed: int
) -> None:
    """With few blocks, so that sequences are preempted meanwhile."""
    work = jobs(seed)
    fault = now_and_then(RuntimeError, each)
    of = core(FaultyRunner(**{where: fault}), overlap, num_blocks=20)  # type: ignore[arg-type]
    assert outputs_of(of, work) == undisturbed(work)
    assert all_free(of)


def test_a_choice_that_raises_ends_all_choices_of_its_job() -> None:
    def fault(batch: Batch) -> Exception | None:
        hit = any(item.seq.job_id == "evil" and item.seq.index == 1 for item in batch)
        return ValueError("second choice") if hit else None

    of = core(FaultyRunner(at_launch=fault), overlap=False)
    work = [Job("evil", [5, 6], SequenceParams(max_tokens=9), n=3), *jobs(1)[:4]]
    found = outputs_of(of, work)
    assert found["evil"] == ["internal_error"]
    assert found.items() >= undisturbed(work[1:]).items()
    assert all_free(of)


class BrokenMatcher(Matcher):
    def __init__(self) -> None:
        super().__init__(None, frozenset())

    def take(self, token_id: int, *, fast: bool) -> list[int]:
        raise RuntimeError("the parser panicked")


@BOTH
def test_a_grammar_that_raises_ends_its_request_alone(overlap: bool) -> None:
    work = jobs(2)[:5]
    of = core(FaultyRunner(), overlap)
    of.submit(Job("held", [5, 6], SequenceParams(max_tokens=9)))
    of._jobs["held"][0].matcher = BrokenMatcher()
    found = outputs_of(of, work)
    assert found.pop("held") == ["internal_error"]
    assert found == undisturbed(work)
    assert all_free(of)


def test_a_job_that_cannot_be_taken_fails_alone() -> None:
    work = jobs(2)[:5]
    of = core(FaultyRunner(), overlap=False)
    of.submit(Job("odd", None, SequenceParams(max_tokens=9)))  # type: ignore[arg-type]
    found = outputs_of(of, work)
    assert found.pop("odd") == ["internal_error"]
    assert found == undisturbed(work)
    assert all_free(of)


# ---- an engine that is broken -------------------------------------------------------------------


@BOTH
def test_when_several_fail_each_alone_and_the_model_runs_others_go_on(overlap: bool) -> None:
    work = jobs(3)
    runner = FaultyRunner(at_launch=of_evil(ValueError))
    of = core(runner, overlap)
    of.submit(evil(0))
    of.submit(evil(1))
    failed = dict(of.step())
    assert failed == dict.fromkeys(
        ("evil 0", "evil 1"), JobFailed("internal_error", "the model failed on this request")
    )
    assert runner.checks == 1
    assert outputs_of(of, work) == undisturbed(work)


@BOTH
def test_when_several_fail_and_the_model_does_not_run_the_engine_is_broken(overlap: bool) -> None:
    runner = FaultyRunner(at_launch=of_evil(ValueError), broken=RuntimeError("no device"))
    of = core(runner, overlap)
    of.submit(evil(0))
    of.submit(evil(1))
    with pytest.raises(EngineBroken, match="does not run any more"):
        of.step()


def test_entries_that_raise_are_found_by_halving() -> None:
    runner = FaultyRunner(at_launch=of_evil(ValueError, behind=4))
    of = EngineCore(runner, BlockPool(400, 4), max_running=64, max_batch_tokens=512)
    for number in range(63):
        of.submit(Job(str(number), [number, 2], SequenceParams(max_tokens=9)))
    of.submit(evil())
    for _ in range(2):
        of.step()
    before = runner.batches
    failed = [job_id for job_id, one in of.step() if isinstance(one, JobFailed)]
    assert failed == ["evil 0"]
    assert runner.batches - before <= 1 + 2 * 6


@pytest.mark.parametrize("broken", [None, RuntimeError("no device")])
def test_when_the_only_one_fails_the_model_is_tried(broken: Exception | None) -> None:
    runner = FaultyRunner(at_launch=of_evil(ValueError), broken=broken)
    of = core(runner, overlap=False)
    of.submit(evil())
    if broken is None:
        [(job_id, failed)] = of.step()
        assert (job_id, failed.code) == ("evil 0", "internal_error")  # type: ignore[union-attr]
    else:
        with pytest.raises(EngineBroken, match="does not run any more"):
            of.step()
    assert runner.checks == 1


@BOTH
@pytest.mark.parametrize("where", ["at_launch", "at_read"])
def test_a_broken_device_is_not_asked_again(overlap: bool, where: str) -> None:
    fault = now_and_then(EngineBroken, 5, least=1)
    runner = FaultyRunner(**{where: fault})  # type: ignore[arg-type]
    with pytest.raises(EngineBroken):
        outputs_of(core(runner, overlap), jobs(3))
    assert runner.batches <= 6  # in overlapped steps the next one was launched before


# ---- memory -------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "fault", [beyond(tokens=7), beyond(sequences=2), beyond(tokens=3, sequences=3), beyond(1, 1)]
)
@pytest.mark.parametrize("seed", range(4))
def test_steps_that_find_no_memory_are_made_smaller(overlap: bool, fault: Fault, seed: int) -> None:
    work = jobs(seed)
    of = core(FaultyRunner(at_launch=fault), overlap)
    assert outputs_of(of, work) == undisturbed(work)
    assert of.load().out_of_memory > 0
    assert all_free(of)


def test_a_prefill_is_cut_before_anybody_loses_his_place() -> None:
    of = core(FaultyRunner(at_launch=beyond(tokens=8)), overlap=False)
    for number in range(4):
        of.submit(Job(str(number), [number, 2, 3, 4], SequenceParams(max_tokens=20)))
    while of.has_work:
        of.step()
    assert of.load().out_of_memory == 1  # 16 tokens, then 8
    assert of.load().preemptions == 0


def test_of_decodes_the_youngest_gives_its_place_up() -> None:
    failed: list[list[str]] = []

    def fault(batch: Batch) -> Exception | None:
        if len(batch) > 2 and all(item.num_new == 1 for item in batch):
            failed.append([item.seq.job_id for item in batch])
            return OutOfMemory()
        return None

    of = core(FaultyRunner(at_launch=fault), overlap=False)
    for number in range(4):
        of.submit(Job(str(number), [number, 2], SequenceParams(max_tokens=4 + number)))
    ended: list[str] = []
    while of.has_work:
        ended += [job_id for job_id, one in of.step() if getattr(one, "finish", None)]
    assert failed == [["0", "1", "2", "3"], ["0", "1", "2"]]
    assert ended == ["0", "1", "2", "3"]
    assert of.load().preemptions == 2


@BOTH
@pytest.mark.parametrize("place", [0, 3, 9])
def test_a_request_that_finds_no_memory_alone_fails(overlap: bool, place: int) -> None:
    work = jobs(5)
    of = core(FaultyRunner(at_launch=of_evil(OutOfMemory, behind=4)), overlap)
    found = outputs_of(of, [*work[:place], evil(), *work[place:]])
    assert found.pop("evil 0") == ["out_of_memory"]
    assert len(found.pop(("evil 0", 0))) == 2
    assert found == undisturbed(work)
    assert all_free(of)


def test_memory_that_is_missing_when_results_are_read_ends_nobody() -> None:
    work = jobs(4)
    of = core(FaultyRunner(at_read=now_and_then(OutOfMemory, 4)), overlap=True)
    assert outputs_of(of, work) == undisturbed(work)
    assert all_free(of)


@pytest.mark.parametrize("is_oldest", [True, False], ids=["the oldest", "a long prompt"])
def test_who_finds_no_memory_fails_alone_and_nobody_loses_his_place(is_oldest: bool) -> None:
    now_s = 0.0

    def fault(batch: Batch) -> Exception | None:
        nonlocal now_s
        now_s += 0.02
        return of_evil(OutOfMemory, behind=20 * is_oldest)(batch)

    of = EngineCore(
        FaultyRunner(at_launch=fault),
        BlockPool(400, 4),
        max_running=16,
        max_batch_tokens=64,
        clock=lambda: now_s,
    )
    culprit = Job("evil", [EVIL] * (4 if is_oldest else 40), SequenceParams(max_tokens=60))
    work = [Job(str(k), [k, 2, 3], SequenceParams(max_tokens=60)) for k in range(8)]
    for job in [culprit, *work] if is_oldest else work:
        of.submit(job)
    for _ in range(5):
        of.step()
    if not is_oldest:
        of.submit(culprit)
    told: dict[str, float] = {}
    pauses: list[float] = []
    failed: list[tuple[str, str]] = []
    while of.has_work:
        for job_id, one in of.step():
            if isinstance(one, JobFailed):
                failed.append((job_id, one.code))
            else:
                pauses.append(now_s - told.get(job_id, now_s))
                told[job_id] = now_s
    assert failed == [("evil", "out_of_memory")]
    assert max(pauses) < 0.5
    assert of.load().preemptions == 0


def test_after_a_request_found_no_memory_the_others_have_all_of_it() -> None:
    runner = FaultyRunner(at_launch=of_evil(OutOfMemory))
    of = EngineCore(runner, BlockPool(40, 4), max_running=6, max_batch_tokens=19, clock=float)
    of.submit(Job("evil", [EVIL] * 15, SequenceParams(max_tokens=5)))
    while of.has_work:
        of.step()
    assert runner.batches <= 8
    of.submit(Job("long", [1] * 19, SequenceParams(max_tokens=2)))
    assert len(of.step()) == 1, "its prefill took a single step"


def test_decodes_do_not_wait_because_of_a_cap() -> None:
    caps = StepCaps(max_running=8, max_batch_tokens=100)
    caps.lower(50.0, tokens=1)
    assert (caps.tokens_beside(0), caps.tokens_beside(6)) == (1, 7)
    assert caps.tokens_beside(200) == 100


@dataclass
class EndsMeanwhile(FaultyRunner):
    """No memory for two sequences that have some output."""

    def launch(self, batch: Batch) -> Step:
        if len(batch) > 1 and all(item.seq.num_output >= 4 for item in batch):
            raise OutOfMemory
        return super().launch(batch)


@BOTH
def test_who_is_left_of_a_step_that_found_no_memory_does_not_fail(overlap: bool) -> None:
    """Overlapped, the other of the two ends by the step before."""
    plain = SequenceParams(max_tokens=10)
    tokens = undisturbed([Job("p", [1, 2, 3], plain)])["p", 0]
    ends = SequenceParams(max_tokens=10, stop_token_ids=(tokens[3],))
    work = [Job("short", [1, 2, 3], ends), Job("long", [9, 8, 7], plain)]
    of = core(EndsMeanwhile(), overlap)
    for job in work:
        of.submit(job)
    assert outputs_of(of, []) == undisturbed(work)


def test_what_raises_together_and_finds_no_memory_alone_fails_in_the_end() -> None:
    def fault(batch: Batch) -> Exception | None:
        return ValueError("together") if len(batch) > 1 else OutOfMemory()

    of = core(FaultyRunner(at_launch=fault), overlap=False)
    for number in range(2):
        of.submit(Job(str(number), [number] * 9, SequenceParams(max_tokens=5)))
    failed = dict(one for _ in range(20) for one in of.step())
    assert {job_id: one.code for job_id, one in failed.items()} == {  # type: ignore[union-attr]
        "0": "out_of_memory",
        "1": "out_of_memory",
    }
    assert 2 <= of.load().out_of_memory < 20


def test_sequences_of_a_lost_step_that_are_aborted_are_not_kept() -> None:
    of = core(FaultyRunner(at_read=lambda _batch: RuntimeError("lost")), overlap=True)
    of.submit(Job("a", [1, 2, 3], SequenceParams(max_tokens=9)))
    while not of._suspects:
        of.step()
    of.abort("a")
    assert of._suspects == []


def test_the_caps_grow_back_with_time() -> None:
    caps = StepCaps(max_running=8, max_batch_tokens=100)
    caps.lower(50.0, running=3, tokens=20)
    caps.ease(50.9)
    assert (caps.running, caps.tokens) == (3, 20)
    caps.ease(51.0)
    caps.ease(51.1)
    assert (caps.running, caps.tokens) == (3, 40)
    for now_s in (52.0, 53.0, 60.0):
        caps.ease(now_s)
    assert (caps.running, caps.tokens) == (6, 100)
    caps.ease(70.0)
    assert (caps.running, caps.tokens) == (8, 100)
    caps.lower(80.0, running=1, tokens=1)
    caps.reset()
    assert (caps.running, caps.tokens) == (8, 100)


# ---- logits that are not finite -----------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("seed", range(4))
def test_neighbours_of_a_bad_row_get_the_tokens_of_an_undisturbed_run(
    overlap: bool, seed: int
) -> None:
    work = jobs(seed)
    of = core(HashRunner(bad=EVIL, bad_after=5), overlap)
    found = outputs_of(of, [*work[:4], evil(), *work[4:]])
    assert found.pop("evil 0") == ["bad_logits"]
    assert len(found.pop(("evil 0", 0))) == 2
    assert found == undisturbed(work)
    assert all_free(of)


def test_a_failure_is_a_code_of_the_taxonomy() -> None:
    of = core(FaultyRunner(at_launch=of_evil(ValueError)), overlap=False)
    of.submit(evil())
    [(_job, failed)] = of.step()
    assert failed == JobFailed("internal_error", "the model failed on this request")
