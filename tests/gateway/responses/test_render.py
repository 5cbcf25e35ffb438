"""Answers and events of the Responses API, which OpenAI's own types accept."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.responses.render import ResponseHead, ResponseRenderer
from protocol.create_response import CreateResponse
from protocol.errors import TriremeError
from protocol.generation import CallPiece, Delta, Done, Event, Started
from protocol.response_object import ResponseObject
from tests.gateway.fakes import logprob

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
STARTED = Started(5, "w1", "d" * 64)
DONE = Done(5, 4, cached_tokens=3, reasoning_tokens=1)
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}}


def delta(text: str = "", **more: Any) -> Delta:
    return Delta(0, 0, [1], text, **more)


PLAIN: list[Event] = [STARTED, delta("Hel"), delta("lo", finish_reason="stop"), DONE]
FULL: list[Event] = [
    STARTED,
    delta(reasoning="Hm"),
    delta(reasoning="m."),
    delta("Look"),
    delta(calls=[CallPiece(0, "look", ""), CallPiece(0, None, '{"at":')]),
    delta(calls=[CallPiece(0, None, "1}")], finish_reason="stop"),
    DONE,
]


class Made:
    """A renderer and what it was finished with."""

    def __init__(self, **fields: Any) -> None:
        asked = CreateResponse.model_validate({"model": "demo", "input": "hi", **fields})
        self.finished: list[dict[str, Any]] = []
        self.renderer = ResponseRenderer(
            ResponseHead("resp_1", 100, asked), now=lambda: 101.5, finished=self.finished.append
        )


def whole(events: list[Event], **fields: Any) -> dict[str, Any]:
    made = Made(**fields)
    for event in events:
        made.renderer.add(0, event)
    answer: dict[str, Any] = orjson.loads(made.renderer.answer())
    Response.model_validate(answer, strict=True)
    ResponseObject.model_validate(answer)
    assert made.finished == [answer]
    return answer


def parsed(raw: bytes) -> list[dict[str, Any]]:
    found = []
    for number, frame in enumerate(raw.split(b"\n\n")[:-1]):
        name, data = frame.split(b"\n")
        event = orjson.loads(data.removeprefix(b"data: "))
        EVENTS.validate_python(event, strict=True)
        if "response" in event:
            ResponseObject.model_validate(event["response"])
        assert name == b"event: " + event["type"].encode()
        assert event["sequence_number"] == number
        found.append(event)
    return found


def events_of(events: list[Event], **fields: Any) -> list[dict[str, Any]]:
    renderer = Made(**fields).renderer
    raw = b"".join(frame for event in events for frame in renderer.chunks(0, event))
    return parsed(raw + renderer.end())


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        random = ("id", "item_id", "call_id")
        return {k: without_ids(v) for k, v in value.items() if k not in random}
    return [without_ids(one) for one in value] if isinstance(value, list) else value


def test_a_whole_answer_has_all_that_openais_has() -> None:
    answer = whole(PLAIN, metadata={"a": "b"}, instructions="Be short.", user="me")
    required = """id object created_at error incomplete_details instructions model tools output
        parallel_tool_calls metadata tool_choice temperature top_p"""
    assert set(required.split()) <= set(answer)
    [message] = answer["output"]
    assert message["content"] == [
        {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    ]
    assert (message["role"], message["status"]) == ("assistant", "completed")
    assert message["id"].startswith("msg_")
    assert answer["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 9,
    }
    shown = ("id", "status", "created_at", "completed_at", "metadata", "instructions", "user")
    assert [answer[name] for name in shown] == [
        "resp_1",
        "completed",
        100,
        101,
        {"a": "b"},
        "Be short.",
        "me",
    ]


def test_the_events_of_a_text() -> None:
    found = events_of(PLAIN)
    assert [event["type"].removeprefix("response.") for event in found] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert found[0]["response"]["status"] == "in_progress"
    assert found[2]["item"]["content"] == []
    assert found[3]["part"]["text"] == ""
    assert [event["delta"] for event in found[4:6]] == ["Hel", "lo"]
    assert found[6]["text"] == found[7]["part"]["text"] == "Hello"
    assert found[8]["item"]["status"] == "completed"


def test_reasoning_text_and_calls_are_items_of_their_own() -> None:
    found = events_of(FULL, tools=[TOOL])
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in done] == ["reasoning", "message", "function_call"]
    assert done[0]["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert (done[2]["name"], done[2]["arguments"]) == ("look", '{"at":1}')
    assert found[-1]["response"]["output"] == done
    arguments = [e for e in found if e["type"].startswith("response.function_call_arguments")]
    assert [event.get("delta") for event in arguments] == ['{"at":', "1}", None]
    assert (arguments[-1]["name"], arguments[-1]["arguments"]) == ("look", '{"at":1}')
    added = [event["item"] for event in found if event["type"] == "response.output_item.added"]
    assert [item["id"] for item in added] == [item["id"] for item in done]
    assert added[2]["arguments"] == ""
    places = [event["output_index"] for event in found if "output_index" in event]
    assert all(after - before in (0, 1) for before, after in pairwise(places))


@pytest.mark.parametrize("events", [PLAIN, FULL])
def test_the_last_event_has_the_whole_answer(events: list[Event]) -> None:
    last = events_of(events)[-1]["response"]
    assert without_ids(last) == without_ids(whole(events))


def test_what_the_limit_cut_is_incomplete() -> None:
    events: list[Event] = [STARTED, delta("Hel", finish_reason="length"), DONE]
    answer = whole(events)
    assert (answer["status"], answer["completed_at"]) == ("incomplete", None)
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["status"] == "incomplete"
    assert events_of(events)[-1]["type"] == "response.incomplete"


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    events: list[Event] = [STARTED, delta(finish_reason="stop"), DONE]
    [message] = whole(events)["output"]
    assert message["content"][0]["text"] == ""
    assert "response.output_text.delta" not in [event["type"] for event in events_of(events)]


def test_log_probabilities_are_shown_when_included() -> None:
    events: list[Event] = [
        STARTED,
        delta("a", logprobs=[logprob(1, "a", 2)]),
        delta("b", logprobs=[logprob(2, "b", 2)], finish_reason="stop"),
        DONE,
    ]
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    shown = whole(events, **fields)["output"][0]["content"][0]["logprobs"]
    assert [one["token"] for one in shown] == ["a", "b"]
    assert [len(one["top_logprobs"]) for one in shown] == [2, 2]
    deltas = [e for e in events_of(events, **fields) if e["type"].endswith("text.delta")]
    assert [one["token"] for event in deltas for one in event["logprobs"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TriremeError("worker_lost", "Gone."), "server_error"),
        (TriremeError("rate_limit_exceeded", "Slower."), "rate_limit_exceeded"),
        (TriremeError("invalid_value", "Wrong.", param="input"), "invalid_prompt"),
    ],
)
def test_a_failure_ends_a_stream_with_its_error_and_a_failed_response(
    error: TriremeError, code: str
) -> None:
    made = Made()
    raw = b"".join(frame for event in PLAIN[:2] for frame in made.renderer.chunks(0, event))
    *_, told, failed = parsed(raw + made.renderer.failure(error))
    assert (told["type"], told["code"], told["message"]) == ("error", error.code, error.message)
    response = failed["response"]
    assert (failed["type"], response["status"]) == ("response.failed", "failed")
    assert response["error"] == {"code": code, "message": error.message}
    assert response["output"][0]["content"][0]["text"] == "Hel"
    assert made.finished == []


def test_large_numbers_of_a_schema_are_shown() -> None:
    schema = {"type": "object", "properties": {"a": {"maximum": 2**80}}}
    made = Made(tools=[{**TOOL, "parameters": schema}])
    [created, _] = made.renderer.chunks(0, STARTED)
    assert str(2**80).encode() in created


def test_what_was_asked_for_is_shown() -> None:
    choice = {"type": "function", "name": "look"}
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    answer = whole(
        PLAIN,
        tools=[TOOL],
        tool_choice=choice,
        parallel_tool_calls=False,
        temperature=0.0,
        reasoning={"effort": "low", "summary": "auto"},
        previous_response_id="resp_0",
        store=False,
    )
    assert answer["tools"] == [{**TOOL, "description": None, "strict": None}]
    assert (answer["tool_choice"], answer["parallel_tool_calls"]) == (choice, False)
    assert answer["reasoning"] == {"effort": "low", "summary": "auto"}
    assert (answer["temperature"], answer["store"]) == (0.0, False)
    assert answer["previous_response_id"] == "resp_0"
    assert whole(PLAIN, text={"format": form})["text"]["format"] == form
