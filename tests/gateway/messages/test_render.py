"""Answers and events of the Messages API, which Anthropic's own types accept."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from pydantic import TypeAdapter
from pydantic_core import from_json

from gateway.messages.render import MessageRenderer
from protocol.anthropic import MessagesRequest
from protocol.anthropic_answers import MessageAnswer
from protocol.errors import TAXONOMY, TriremeError
from protocol.generation import CallPiece, Delta, Done, Event, Started

EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
STARTED = Started(5, "w1", "d" * 64)
DONE = Done(5, 4, cached_tokens=3, reasoning_tokens=1)


def delta(text: str = "", **more: Any) -> Delta:
    return Delta(0, 0, [1], text, **more)


FULL: list[Event] = [
    STARTED,
    delta(reasoning="Hm"),
    delta(reasoning="m."),
    delta("Look"),
    delta(calls=[CallPiece(0, "look", ""), CallPiece(0, None, '{"at":')]),
    delta(calls=[CallPiece(0, None, "1}")], finish_reason="stop"),
    DONE,
]


def make(**fields: Any) -> MessageRenderer:
    body = {"model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    return MessageRenderer("msg_1", MessagesRequest.model_validate({**body, **fields}), "req-1")


def whole(events: list[Event], **fields: Any) -> dict[str, Any]:
    renderer = make(**fields)
    for event in events:
        renderer.add(0, event)
    answer: dict[str, Any] = from_json(renderer.answer())
    Message.model_validate(answer, strict=True)
    MessageAnswer.model_validate(answer)
    return answer


def parsed(raw: bytes) -> list[dict[str, Any]]:
    found = []
    for frame in raw.split(b"\n\n")[:-1]:
        name, data = frame.split(b"\n")
        event = orjson.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        if event["type"] not in ("ping", "error"):
            EVENTS.validate_python(event, strict=True)
        found.append(event)
    return found


def events_of(events: list[Event], **fields: Any) -> list[dict[str, Any]]:
    renderer = make(**fields)
    raw = b"".join(frame for event in events for frame in renderer.chunks(0, event))
    return parsed(raw + renderer.end())


def test_a_whole_message() -> None:
    answer = whole(FULL)
    call = answer["content"].pop()
    assert call.pop("id").startswith("toolu_")
    assert call == {"type": "tool_use", "name": "look", "input": {"at": 1}}
    assert answer == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "demo",
        "content": [
            {"type": "thinking", "thinking": "Hmm.", "signature": ""},
            {"type": "text", "text": "Look", "citations": None},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 2,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": 4,
            "output_tokens_details": {"thinking_tokens": 1},
            "service_tier": "standard",
        },
    }


def test_the_events_of_a_message() -> None:
    found = events_of(FULL)
    assert [(event["type"], event.get("index")) for event in found] == [
        ("message_start", None),
        ("ping", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]
    start = found[0]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["input_tokens"]) == ([], None, 5)
    assert [e["delta"] for e in found if e["type"] == "content_block_delta"] == [
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "thinking_delta", "thinking": "m."},
        {"type": "text_delta", "text": "Look"},
        {"type": "input_json_delta", "partial_json": '{"at":'},
        {"type": "input_json_delta", "partial_json": "1}"},
    ]
    assert found[9]["content_block"]["input"] == {}
    end = whole(FULL)
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[-2]["usage"] == end["usage"]


@pytest.mark.parametrize(
    ("last", "reason", "sequence"),
    [
        (delta("a", finish_reason="stop"), "end_turn", None),
        (delta("a", finish_reason="length"), "max_tokens", None),
        (delta("a", finish_reason="stop", stop_reason="END"), "stop_sequence", "END"),
        (delta("a", finish_reason="stop", stop_reason="</s>"), "end_turn", None),
        (delta("a", finish_reason="stop", stop_reason=7), "end_turn", None),
    ],
)
def test_why_it_ended(last: Delta, reason: str, sequence: str | None) -> None:
    answer = whole([STARTED, last, DONE], stop_sequences=["END"])
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        (f'{{"at": {2**80}}}', {"at": 2**80}),
        ('{"at": "Ber', {"at": "Ber"}),
        ('{"at": 1, "b', {"at": 1}),
        ("", {}),
        ("[1]", {}),
    ],
)
def test_a_call_that_was_cut_has_what_is_there(arguments: str, read: dict[str, Any]) -> None:
    calls = [CallPiece(0, "look", arguments)]
    answer = whole([STARTED, delta(calls=calls, finish_reason="length"), DONE])
    assert answer["content"][0]["input"] == read
    assert answer["stop_reason"] == "max_tokens"


def test_thinking_that_is_omitted_is_an_empty_block() -> None:
    thinking = {"type": "adaptive", "display": "omitted"}
    assert whole(FULL, thinking=thinking)["content"][0]["thinking"] == ""
    shown = [event for event in events_of(FULL, thinking=thinking) if event.get("index") == 0]
    assert [event["type"] for event in shown] == ["content_block_start", "content_block_stop"]


def test_an_answer_of_nothing_has_no_block() -> None:
    assert whole([STARTED, delta(finish_reason="stop"), DONE])["content"] == []


def test_a_failure_ends_a_stream_with_an_error() -> None:
    renderer = make()
    error = TriremeError("worker_lost", "Gone.")
    [event] = parsed(renderer.failure(error))
    assert event == {
        "type": "error",
        "error": {"type": "api_error", "message": "Gone."},
        "request_id": "req-1",
    }


@pytest.mark.parametrize("code", sorted(TAXONOMY))
def test_every_error_has_a_type_of_anthropics(code: str) -> None:
    [event] = parsed(make().failure(TriremeError(code, "It is so.")))
    if code == "request_too_large":  # its documentation has this one, its client's types do not
        assert event["error"]["type"] == "request_too_large"
    else:
        ErrorResponse.model_validate(event, strict=True)
