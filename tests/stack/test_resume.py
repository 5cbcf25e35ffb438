"""A real model's answer, cut at every position and gone on with: equal to the unbroken one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from protocol.generation import Delta, Event, decode_event
from tests.stack.processes import Stack, running
from tests.stack.taught import HELLO, QUESTION, TOOLS, teach

SCHEMA = {
    "type": "object",
    "properties": {"place": {"type": "string", "maxLength": 4}, "days": {"enum": [1, 2, 3]}},
    "required": ["place", "days"],
    "additionalProperties": False,
}
FORCED = {"functions": [{"name": "weather", "parameters": SCHEMA}], "parallel": True}
NOISE = {"temperature": 1.3, "max_tokens": 40}
CASES: dict[str, dict[str, Any]] = {
    "greedy, thinks and calls": {
        "messages": [QUESTION],
        "tools": TOOLS,
        "parse": True,
        "sampling": {"temperature": 0.0, "max_tokens": 90},
    },
    "seeded, penalties": {
        "messages": HELLO,
        "sampling": {
            **NOISE,
            "repetition_penalty": 1.3,
            "presence_penalty": 0.7,
            "frequency_penalty": 0.5,
            "top_p": 0.95,
            "logit_bias": {"70": 3.0},
            "ignore_eos": True,
        },
    },
    "two choices, log probabilities": {
        "prompt": "Hello",
        "sampling": {**NOISE, "n": 2, "logprobs": 2, "max_tokens": 16},
    },
    "a schema": {
        "messages": HELLO,
        "sampling": {"temperature": 1.0},
        "structure": {"kind": "json_schema", "value": SCHEMA},
    },
    "forced calls": {
        "messages": HELLO,
        "sampling": {"temperature": 1.0, "max_tokens": 60},
        "structure": {"kind": "tools", "value": FORCED},
    },
    "one call only": {
        "messages": [QUESTION],
        "tools": TOOLS,
        "parse": True,
        "parallel_tool_calls": False,
        "sampling": {"temperature": 0.0, "max_tokens": 90},
    },
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("models") / "taught"
    teach(folder)
    with running(tmp_path_factory.mktemp("stack")) as made:
        made.add_worker("--model-path", str(folder), "--model-names", "taught")
        made.wait_serving()
        yield made


def events_of(stack: Stack, case: dict[str, Any], **fields: Any) -> list[Event]:
    sampling = {"seed": 11, **case["sampling"]}
    body = {"request_id": "r", "model": "taught", **case, "sampling": sampling, **fields}
    answer = httpx.post(f"{stack.workers[0].url}/native/generate", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return [decode_event(line) for line in answer.content.splitlines()]


def left_behind(events: Sequence[Event], n: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"ids": [], "ended": False} for _ in range(n)]
    for delta in events:
        if isinstance(delta, Delta):
            found[delta.index]["ids"] += delta.ids
            found[delta.index]["ended"] = delta.finish_reason is not None
    return found


def folded(events: Sequence[Event], n: int) -> list[dict[str, Any]]:
    """All that the choices gave: however their tokens came together in deltas."""
    folds: list[dict[str, Any]] = [
        {"ids": [], "text": "", "reasoning": "", "calls": [], "logprobs": [], "finish": None}
        for _ in range(n)
    ]
    for delta in events:
        if not isinstance(delta, Delta):
            continue
        fold = folds[delta.index]
        assert delta.pos == len(fold["ids"])
        fold["ids"] += delta.ids
        fold["text"] += delta.text
        fold["reasoning"] += delta.reasoning
        fold["logprobs"] += [(one.id, round(one.logprob or 0, 5)) for one in delta.logprobs or ()]
        for piece in delta.calls or ():
            if piece.name is not None:
                fold["calls"].append([piece.name, ""])
            fold["calls"][piece.index][1] += piece.arguments
        fold["finish"] = delta.finish_reason or fold["finish"]
    return folds


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_cut_at_every_position(stack: Stack, case: dict[str, Any]) -> None:
    n = case["sampling"].get("n", 1)
    whole = events_of(stack, case)
    expected = folded(whole, n)

    def resumed(cut: int) -> list[Event]:
        rest = events_of(stack, case, resume=left_behind(whole[:cut], n))
        return [*whole[:cut], *rest[1:]]

    with ThreadPoolExecutor(4) as pool:
        for both in pool.map(resumed, range(2, len(whole))):
            assert folded(both, n) == expected
            before, after = both[-1], whole[-1]
            assert before.completion_tokens == after.completion_tokens  # type: ignore[union-attr]
            assert before.reasoning_tokens == after.reasoning_tokens  # type: ignore[union-attr]
    if case.get("parse"):
        assert expected[0]["reasoning"] == "Two cities."
        assert [json.loads(arguments) for _, arguments in expected[0]["calls"]]
