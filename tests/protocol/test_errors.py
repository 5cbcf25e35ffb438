"""The table of errors: which of them a client may hope to see the end of."""

from __future__ import annotations

from protocol.errors import TAXONOMY

LIE_WITH_THE_MOMENT = """
    rate_limit_exceeded token_limit_exceeded overloaded wrong_instance draining no_worker
    worker_unreachable worker_lost
    worker_timeout deadline_exceeded out_of_memory engine_dead engine_unavailable internal_error
"""


def test_a_retry_is_of_use_where_the_error_lies_with_the_moment() -> None:
    assert {code for code, spec in TAXONOMY.items() if spec.passes} == set(
        LIE_WITH_THE_MOMENT.split()
    )


def test_what_another_worker_may_answer_may_be_answered_later() -> None:
    assert all(spec.passes for spec in TAXONOMY.values() if spec.retryable)
