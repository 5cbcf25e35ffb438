"""Deltas become blocks, each with one beginning and one end."""

from __future__ import annotations

from typing import Any

from gateway.blocks import Blocks, Closed, Grew, Opened, Step
from protocol.generation import CallPiece, Delta
from tests.gateway.fakes import logprob


def delta(text: str = "", **more: Any) -> Delta:
    return Delta(0, 0, [1], text, **more)


def shown(step: Step) -> tuple[str, int, str]:
    match step:
        case Opened(block):
            return "open", block.index, block.kind + block.name
        case Grew(block, piece):
            return "grow", block.index, piece
        case Closed(block):
            return "close", block.index, block.status


def steps(*deltas: Delta, never_empty: bool = False) -> list[tuple[str, int, str]]:
    blocks = Blocks(never_empty=never_empty)
    return [shown(step) for one in deltas for step in blocks.take(one)]


def test_reasoning_text_and_calls_follow_each_other() -> None:
    assert steps(
        delta(reasoning="Hm"),
        delta(reasoning="m."),
        delta("Look:"),
        delta(calls=[CallPiece(0, "a", ""), CallPiece(0, None, "{}"), CallPiece(1, "b", "")]),
        delta(calls=[CallPiece(1, None, "[")]),
        delta(calls=[CallPiece(1, None, "]")], finish_reason="stop"),
    ) == [
        ("open", 0, "reasoning"),
        ("grow", 0, "Hm"),
        ("grow", 0, "m."),
        ("close", 0, "completed"),
        ("open", 1, "text"),
        ("grow", 1, "Look:"),
        ("close", 1, "completed"),
        ("open", 2, "calla"),
        ("grow", 2, "{}"),
        ("close", 2, "completed"),
        ("open", 3, "callb"),
        ("grow", 3, "["),
        ("grow", 3, "]"),
        ("close", 3, "completed"),
    ]


def test_all_kinds_in_one_delta_keep_their_order() -> None:
    calls = [CallPiece(0, "a", "{}")]
    one = delta("text", reasoning="thought", calls=calls, finish_reason="stop")
    assert [kind for action, _, kind in steps(one) if action == "open"] == [
        "reasoning",
        "text",
        "calla",
    ]


def test_what_a_limit_cut_is_incomplete_and_only_that() -> None:
    found = steps(delta(reasoning="Hm"), delta("Yes", finish_reason="length"))
    assert [status for action, _, status in found if action == "close"] == [
        "completed",
        "incomplete",
    ]


def test_an_answer_of_nothing_is_one_empty_text_where_that_is_wanted() -> None:
    nothing = delta(finish_reason="stop")
    assert steps(nothing) == []
    assert steps(nothing, never_empty=True) == [("open", 0, "text"), ("close", 0, "completed")]


def test_log_probabilities_wait_for_the_text_of_their_tokens() -> None:
    blocks = Blocks()
    deltas = [
        delta(reasoning="Hm", logprobs=[logprob(1, "Hm", 0)]),
        delta("", logprobs=[logprob(2, "Y", 0)]),
        delta("Yes", logprobs=[logprob(3, "es", 0)]),
        delta("", logprobs=[logprob(4, "<end>", 0)], finish_reason="stop"),
    ]
    for one in deltas:
        list(blocks.take(one))
    thought, text = blocks.row
    assert thought.logprobs == []
    assert [one.id for one in text.logprobs] == [2, 3, 4]
    assert text.text == "Yes"


def test_log_probabilities_of_calls_are_not_shown() -> None:
    found = steps(
        delta("", logprobs=[logprob(1, "<", 0)]),
        delta(calls=[CallPiece(0, "a", "{}")], logprobs=[logprob(2, ">", 0)]),
        delta("", logprobs=[logprob(3, "<end>", 0)], finish_reason="stop"),
    )
    assert [action for action, _, _ in found] == ["open", "grow", "close"]
