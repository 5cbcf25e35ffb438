"""Events become OpenAI's frames and answers, which OpenAI's own types accept."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.render import AnswerHead, CompletionRenderer, Renderer
from gateway.render_chat import ChatRenderer
from protocol.generation import Delta, Done, Event, Prompt, Started, TokenLogprob
from protocol.openai import ChatCompletionStreamResponse, StreamOptions
from tests.gateway.fakes import logprob

HEAD = AnswerHead("chatcmpl-1", 123, "demo")
STARTED = Started(5, "w1", "abcdef" * 10)


def delta(text: str, pos: int = 0, index: int = 0, **more: Any) -> Delta:
    return Delta(index, pos, [100 + pos] if text else [], text, **more)


PLAIN: list[Event] = [
    STARTED,
    delta("Hel", 0),
    delta("", 1),
    delta("lo", 1, finish_reason="stop"),
    Done(5, 2, 4),
]


def frames(renderer: Renderer, events: list[Event], prompt: int = 0) -> list[dict[str, Any]]:
    found = [frame for event in events for frame in renderer.chunks(prompt, event)]
    last = renderer.last_chunk()
    for frame in found + ([last] if last else []):
        assert frame.startswith(b"data: {")
        assert frame.endswith(b"}\n\n")
    return [orjson.loads(frame[6:]) for frame in found + ([last] if last else [])]


def whole(renderer: Renderer, events: list[Event]) -> dict[str, Any]:
    for event in events:
        renderer.add(0, event)
    answer: dict[str, Any] = orjson.loads(renderer.answer())
    return answer


def test_chat_frames_in_order() -> None:
    found = frames(ChatRenderer(HEAD), PLAIN)
    for frame in found:
        ChatCompletionChunk.model_validate(frame, strict=True)
        ChatCompletionStreamResponse.model_validate(frame)
        assert (frame["id"], frame["object"], frame["created"], frame["model"]) == (
            "chatcmpl-1",
            "chat.completion.chunk",
            123,
            "demo",
        )
        assert "usage" not in frame
    assert [(f["choices"][0]["delta"], f["choices"][0]["finish_reason"]) for f in found] == [
        ({"role": "assistant"}, None),
        ({"content": "Hel"}, None),
        ({"content": "lo"}, "stop"),
    ]


def test_a_finish_without_text_has_an_empty_delta() -> None:
    found = frames(ChatRenderer(HEAD), [STARTED, delta("", finish_reason="length")])
    assert found[-1]["choices"][0]["delta"] == {}
    assert found[-1]["choices"][0]["finish_reason"] == "length"


def test_the_usage_frame_comes_last_and_only_when_asked_for() -> None:
    found = frames(ChatRenderer(HEAD, options=StreamOptions(include_usage=True)), PLAIN)
    assert all(frame["usage"] is None for frame in found[:-1])
    assert found[-1]["choices"] == []
    assert found[-1]["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_continuous_usage_grows_with_the_tokens() -> None:
    options = StreamOptions(include_usage=True, continuous_usage_stats=True)
    found = frames(ChatRenderer(HEAD, options=options), PLAIN)
    assert [frame["usage"]["completion_tokens"] for frame in found] == [0, 1, 2, 2]


def test_a_chat_answer_is_the_fold_of_the_frames() -> None:
    answer = whole(ChatRenderer(HEAD), PLAIN)
    ChatCompletion.model_validate(answer, strict=True)
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"]["total_tokens"] == 7
    assert answer["system_fingerprint"] == "fp_abcdefabcdef"


def test_several_choices_keep_apart() -> None:
    events: list[Event] = [
        STARTED,
        delta("a", index=1, finish_reason="stop"),
        delta("b", index=0, finish_reason="length"),
        Done(5, 2),
    ]
    head = AnswerHead("x", 1, "m", n=2)
    answer = whole(ChatRenderer(head), events)
    assert [c["message"]["content"] for c in answer["choices"]] == ["b", "a"]
    found = frames(ChatRenderer(head), events)
    assert [f["choices"][0]["index"] for f in found] == [0, 1, 1, 0]


def test_chat_logprobs_carry_bytes_and_tops() -> None:
    events: list[Event] = [
        STARTED,
        delta("é", logprobs=[logprob(7, "é", 2)], finish_reason="stop"),
        Done(5, 1),
    ]
    answer = whole(ChatRenderer(HEAD), events)
    ChatCompletion.model_validate(answer, strict=True)
    (token,) = answer["choices"][0]["logprobs"]["content"]
    assert (token["token"], token["bytes"], token["logprob"]) == ("é", [195, 169], -0.5)
    assert [top["token"] for top in token["top_logprobs"]] == ["é", "é*"]
    streamed = frames(ChatRenderer(HEAD), events)[1]
    assert streamed["choices"][0]["logprobs"] == answer["choices"][0]["logprobs"]


def test_a_token_whose_text_is_held_back_still_shows_its_logprobs() -> None:
    held = Delta(0, 0, [7], "", [logprob(7, "\ufffd", 0)])
    found = frames(ChatRenderer(HEAD), [STARTED, held])
    assert found[1]["choices"][0]["delta"] == {"content": ""}
    assert len(found[1]["choices"][0]["logprobs"]["content"]) == 1


def test_tokens_can_be_named_by_their_ids() -> None:
    events: list[Event] = [STARTED, delta("a", logprobs=[logprob(7, "a", 1)]), Done(5, 1)]
    answer = whole(ChatRenderer(HEAD, as_ids=True), events)
    (token,) = answer["choices"][0]["logprobs"]["content"]
    assert (token["token"], token["top_logprobs"][0]["token"]) == ("token_id:7", "token_id:7")


def test_a_chat_echo_leads_every_choice() -> None:
    assert whole(ChatRenderer(HEAD, lead="Oh. "), PLAIN)["choices"][0]["message"]["content"] == (
        "Oh. Hello"
    )
    texts = [
        f["choices"][0]["delta"].get("content")
        for f in frames(ChatRenderer(HEAD, lead="Oh. "), PLAIN)
    ]
    assert texts == [None, "Oh. ", "Hel", "lo"]


LOGGED: list[Event] = [
    STARTED,
    delta("Hel", 0, logprobs=[logprob(7, "Hel", 2)]),
    delta("lo", 1, logprobs=[logprob(8, "lo", 2)], finish_reason="stop"),
    Done(5, 2),
]
ECHOED: list[Event] = [
    STARTED,
    Prompt([1, 2], "Ask", [TokenLogprob(1, "A", [65], None), logprob(2, "sk", 1)]),
    *LOGGED[1:],
]


def test_a_completion_has_the_legacy_arrays() -> None:
    answer = whole(CompletionRenderer(HEAD, logprobs=True), LOGGED)
    Completion.model_validate(answer, strict=True)
    choice = answer["choices"][0]
    assert (answer["object"], choice["text"]) == ("text_completion", "Hello")
    assert choice["logprobs"] == {
        "text_offset": [0, 3],
        "token_logprobs": [-0.5, -0.5],
        "tokens": ["Hel", "lo"],
        "top_logprobs": [{"Hel": -0.5, "Hel*": -1.5}, {"lo": -0.5, "lo*": -1.5}],
    }


def test_tokens_within_a_character_have_its_offset() -> None:
    parts = [TokenLogprob(i, "\ufffd", [byte], -0.5) for i, byte in enumerate("🦊".encode())]
    events: list[Event] = [
        STARTED,
        Delta(0, 0, [0, 1, 2, 3], "🦊", parts),
        delta("lo", 4, logprobs=[logprob(8, "lo", 0)], finish_reason="stop"),
        Done(5, 5),
    ]
    for found in (
        [whole(CompletionRenderer(HEAD, logprobs=True), events)],
        frames(CompletionRenderer(HEAD, logprobs=True), events),
    ):
        offsets = [at for one in found for at in one["choices"][0]["logprobs"]["text_offset"]]
        assert offsets == [0, 0, 0, 0, 1]


def test_streamed_arrays_are_increments() -> None:
    found = frames(CompletionRenderer(HEAD, logprobs=True), LOGGED)
    assert [f["choices"][0]["text"] for f in found] == ["Hel", "lo"]
    assert [f["choices"][0]["logprobs"]["tokens"] for f in found] == [["Hel"], ["lo"]]
    assert [f["choices"][0]["logprobs"]["text_offset"] for f in found] == [[0], [3]]
    assert found[-1]["choices"][0]["finish_reason"] == "stop"


def test_echo_puts_the_prompt_and_its_logprobs_first() -> None:
    choice = whole(CompletionRenderer(HEAD, echo=True, logprobs=True), ECHOED)["choices"][0]
    assert choice["text"] == "AskHello"
    assert choice["logprobs"]["tokens"] == ["A", "sk", "Hel", "lo"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 3, 6]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["top_logprobs"][0] is None
    found = frames(CompletionRenderer(HEAD, echo=True, logprobs=True), ECHOED)
    assert "".join(f["choices"][0]["text"] for f in found) == "AskHello"


def test_a_prompt_without_logprobs_still_counts_in_the_offsets() -> None:
    events: list[Event] = [STARTED, Prompt([], "Ask"), *LOGGED[1:]]
    choice = whole(CompletionRenderer(HEAD, echo=True, logprobs=True), events)["choices"][0]
    assert choice["logprobs"]["text_offset"] == [3, 6]


def test_prompt_logprobs_are_shown_without_the_prompt() -> None:
    answer = whole(CompletionRenderer(HEAD, prompt_logprobs=True), ECHOED)
    choice = answer["choices"][0]
    assert choice["text"] == "Hello"
    assert choice["prompt_logprobs"] == [
        None,
        {"2": {"logprob": -0.5, "rank": 1, "decoded_token": "sk"}},
    ]
    assert (
        whole(ChatRenderer(HEAD, prompt_logprobs=True), ECHOED)["prompt_logprobs"]
        == (choice["prompt_logprobs"])
    )


def test_a_prompt_in_pieces_is_one_prompt() -> None:
    whole_prompt = ECHOED[1]
    assert isinstance(whole_prompt, Prompt)
    assert whole_prompt.logprobs is not None
    first, second = whole_prompt.logprobs
    pieces = [Prompt([1], "Ask", [first]), Prompt([2], "", [second])]
    events: list[Event] = [STARTED, *pieces, *LOGGED[1:]]
    for options in ({"echo": True, "logprobs": True}, {"prompt_logprobs": True}):
        found = whole(CompletionRenderer(HEAD, **options), events)
        assert found == whole(CompletionRenderer(HEAD, **options), ECHOED)


def test_choices_of_many_prompts_are_numbered_through_and_counted_once() -> None:
    renderer = CompletionRenderer(AnswerHead("x", 1, "m", n=2, prompts=2))
    for prompt in (1, 0):
        renderer.add(prompt, Started(5, "w", ""))
        for index in (0, 1):
            text = f"{prompt}{index}"
            renderer.add(prompt, delta(text, index=index, finish_reason="stop"))
        renderer.add(prompt, Done(5, 2))
    answer = orjson.loads(renderer.answer())
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [
        (0, "00"),
        (1, "01"),
        (2, "10"),
        (3, "11"),
    ]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (10, 4)


@pytest.mark.parametrize("value", [float("-inf"), -1e9])
def test_a_logprob_that_json_cannot_carry_is_bounded(value: float) -> None:
    token = TokenLogprob(7, "a", [97], value)
    answer = whole(ChatRenderer(HEAD), [STARTED, delta("a", logprobs=[token]), Done(5, 1)])
    assert answer["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0
