"""Whether a request that failed goes on, without a socket."""

from __future__ import annotations

import pytest

from gateway.metrics import GatewayMetrics
from gateway.progress import Progress
from gateway.retries import RETRY_RESERVE, Retries, RetryBudget
from gateway.routing import Group
from protocol.errors import TriremeError
from protocol.generation import Delta, GenerateRequest, Started
from tests.gateway.fakes import record

REQUEST = GenerateRequest(request_id="r", model="m", prompt="x")
WORKERS = [record(f"w{i}", f"http://127.0.0.1:{i + 1}") for i in range(4)]
METRICS = GatewayMetrics()


def retries(*told: Started | Delta, budget: RetryBudget | None = None) -> Retries:
    progress = Progress(REQUEST)
    progress.take(list(told))
    return Retries(budget or RetryBudget(), METRICS, "m", progress)


def failed(code: str) -> TriremeError:
    return TriremeError(code, "no")


ADMITTED = Started(3, "w0", "d", seed=1)


def test_retries_of_what_nobody_took_in_share_a_budget() -> None:
    budget = RetryBudget()
    new, begun = retries(budget=budget), retries(ADMITTED, budget=budget)
    for _ in range(int(RETRY_RESERVE)):
        assert budget.spend()
    with pytest.raises(TriremeError, match="no"):
        new.note(WORKERS[0], failed("worker_timeout"))
    begun.note(WORKERS[0], failed("worker_timeout"))


def test_the_third_failure_ends_it() -> None:
    one = retries()
    one.note(WORKERS[0], failed("worker_unreachable"))
    one.note(WORKERS[1], failed("worker_unreachable"))
    with pytest.raises(TriremeError) as caught:
        one.note(WORKERS[2], failed("worker_unreachable"))
    assert caught.value.code == "worker_unreachable"


def test_a_begun_answer_asks_everybody_who_may_be_there() -> None:
    one = retries(ADMITTED, Delta(0, 0, [5], "a"))
    for worker in WORKERS:
        one.note(worker, failed("worker_unreachable"))
    assert one.tried(Group(WORKERS)) == [worker.instance_id for worker in WORKERS]


@pytest.mark.parametrize("told", [(), (ADMITTED,), (ADMITTED, Delta(0, 0, [5], "a"))])
def test_workers_that_were_not_there_do_not_count_against_one_that_dies(
    told: tuple[Started | Delta, ...],
) -> None:
    """Two addresses of a fleet that has just restarted, then a worker that is killed."""
    one = retries()
    one.note(WORKERS[0], failed("wrong_instance"))
    one.note(WORKERS[1], failed("worker_unreachable"))
    assert one._progress is not None
    one._progress.take(list(told))
    one.note(WORKERS[2], failed("worker_lost"))
    if told:
        one.note(WORKERS[3], failed("wrong_instance"))
    assert one.tries == 3 + bool(told)


@pytest.mark.parametrize("second", ["worker_lost", "engine_dead"])
def test_two_deaths_are_enough(second: str) -> None:
    one = retries(ADMITTED)
    one.note(WORKERS[0], failed("worker_lost"))
    with pytest.raises(TriremeError) as caught:
        one.note(WORKERS[1], failed(second))
    assert caught.value.code == "request_quarantined"


def test_a_worker_with_another_engine_was_not_tried() -> None:
    one = retries()
    one.note(WORKERS[0], failed("engine_dead"))
    assert one.tried(Group(WORKERS)) == ["w0"]
    restarted = WORKERS[0].model_copy(update={"engine_starts": 2})
    assert one.tried(Group([restarted, *WORKERS[1:]])) == []


@pytest.mark.parametrize(
    ("told", "code", "waits"),
    [
        ((), "overloaded", False),
        ((), "worker_lost", False),
        ((), "engine_dead", True),
        ((ADMITTED,), "worker_lost", True),
    ],
)
def test_only_what_lost_its_engine_or_its_place_waits(
    told: tuple[Started, ...], code: str, waits: bool
) -> None:
    one = retries(*told)
    assert not one.waits
    one.note(WORKERS[0], failed(code))
    assert one.waits is waits


def test_the_client_is_told_the_shortest_wait_that_a_worker_named() -> None:
    one = retries()
    one.note(WORKERS[0], TriremeError("overloaded", "full", retry_after_s=2.0))
    one.note(WORKERS[1], TriremeError("overloaded", "full", retry_after_s=9.0))
    assert one.nobody().retry_after_s == 2.0
