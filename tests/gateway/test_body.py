"""Bodies become their one valid type, or the exact error; every fault has a valid neighbour."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import to_json

from gateway.body import parse
from protocol.errors import TriremeError
from protocol.openai import (
    APIChatCompletionRequest,
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingsRequest,
    TokenCheckRequest,
)

HELLO = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "m", "messages": HELLO}
TEXT: dict[str, Any] = {"model": "m", "prompt": "hi"}
EMBED: dict[str, Any] = {"model": "m", "input": "hi"}
MODELS: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "chat": (ChatCompletionRequest, CHAT),
    "text": (CompletionRequest, TEXT),
    "embed": (EmbeddingsRequest, EMBED),
    "api": (APIChatCompletionRequest, CHAT),
}
MISSING = object()
BEAMS = {"use_beam_search": True, "n": 3}


def read(kind: str, fields: dict[str, Any], *, lenient: bool = False) -> Any:
    model, base = MODELS[kind]
    body = {name: value for name, value in (base | fields).items() if value is not MISSING}
    return parse(to_json(body), model, lenient=lenient)


def refused(kind: str, fields: dict[str, Any], *, lenient: bool = False) -> TriremeError:
    with pytest.raises(TriremeError) as caught:
        read(kind, fields, lenient=lenient)
    assert caught.value.spec.status == 400
    assert caught.value.message
    return caught.value


def turn(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"} | fields]}


def bare(**fields: Any) -> dict[str, Any]:
    return {"messages": [fields]}


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [fields]}]}


def function(**fields: Any) -> dict[str, Any]:
    tool = {"type": "function", "function": fields}
    return {"tools": [tool], "tool_choice": "required"}


CALL = function(name="f")
NAMED_F, NAMED_G = ({"type": "function", "function": {"name": name}} for name in "fg")
NAMED_SCHEMA = {"name": "x", "schema": {"type": "object"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1'}}
]}  # fmt: skip
RESULT = {"role": "tool", "tool_call_id": "c", "content": "7"}
TOO_BIG, TOO_SMALL = "integer_above_max_value", "integer_below_min_value"
TYPE, VALUE, ABSENT = "invalid_type", "invalid_value", "missing_required_parameter"
UNKNOWN, UNSUPPORTED, OTHER = "unknown_parameter", "unsupported_parameter", "invalid_request"

BAD_KWARGS: list[dict[str, Any]] = [
    {"tokenize": True},
    {"messages": "x"},
    {"tools": 1},
    {"a": []},
    {"a": {}},
]

# kind, what is wrong, param, code, and the nearest that is right
ROWS: list[tuple[str, dict[str, Any], str, str, dict[str, Any]]] = [
    ("chat", {"model": MISSING}, "model", ABSENT, {}),
    ("chat", {"model": 5}, "model", TYPE, {"model": "5"}),
    ("chat", {"model": None}, "model", TYPE, {"model": "None"}),
    ("chat", {"model": ""}, "model", VALUE, {"model": "x"}),
    ("chat", {"messages": MISSING}, "messages", ABSENT, {}),
    ("chat", {"messages": None}, "messages", TYPE, {}),
    ("chat", {"messages": []}, "messages", "empty_array", {}),
    ("chat", {"messages": "hi"}, "messages", TYPE, {}),
    ("chat", {"messages": [1]}, "messages[0]", TYPE, {}),
    ("chat", {"messages": [*HELLO, None]}, "messages[1]", TYPE, {"messages": [*HELLO, *HELLO]}),
    ("chat", turn(role="wizard"), "messages[0].role", VALUE, turn(role="developer")),
    ("chat", bare(content="hi"), "messages[0].role", ABSENT, turn()),
    ("chat", turn(content=None), "messages[0].content", TYPE, bare(role="assistant", content=None)),
    ("chat", bare(role="user"), "messages[0].content", ABSENT, bare(role="assistant")),
    ("chat", turn(content=7), "messages[0].content", TYPE, turn(content="7")),
    ("chat", turn(content=[]), "messages[0].content", "empty_array", turn(content="")),
    ("chat", part(text="a"), "messages[0].content[0].type", ABSENT, part(type="text", text="a")),
    ("chat", part(type="text"), "messages[0].content[0].text", ABSENT, part(type="text", text="")),
    ("chat", turn(content=["a"]), "messages[0].content[0]", TYPE, turn(content="a")),
    *(
        ("chat", part(type=kind, **{kind: {}}), "messages[0].content[0].type", VALUE, turn())
        for kind in ("image_url", "file", "input_audio")
    ),
    ("chat", turn(colour=1), "messages[0].colour", UNKNOWN, turn(name="Ann")),
    ("chat", {"messages": [RESULT]}, "messages[0].role", OTHER, {"messages": [CALLED, RESULT]}),
    (
        "chat",
        {"messages": [CALLED, *HELLO, RESULT]},
        "messages[2].role",
        OTHER,
        {"messages": [CALLED, RESULT, RESULT, *HELLO]},
    ),
    ("chat", {"temperature": 2.1}, "temperature", "decimal_above_max_value", {"temperature": 2.0}),
    ("chat", {"temperature": 3}, "temperature", "decimal_above_max_value", {"temperature": 2}),
    ("chat", {"temperature": -0.1}, "temperature", "decimal_below_min_value", {"temperature": 0}),
    ("chat", {"temperature": "hot"}, "temperature", TYPE, {"temperature": 0.5}),
    ("chat", {"temperature": True}, "temperature", TYPE, {"temperature": 1}),
    ("chat", {"top_p": 1.5}, "top_p", "decimal_above_max_value", {"top_p": 1.0}),
    ("chat", {"top_p": -1}, "top_p", "decimal_below_min_value", {"top_p": 0}),
    ("chat", {"top_k": 0}, "top_k", TOO_SMALL, {"top_k": 1}),
    ("chat", {"top_k": -2}, "top_k", TOO_SMALL, {"top_k": -1}),
    ("chat", {"min_p": 1.1}, "min_p", "decimal_above_max_value", {"min_p": 1}),
    ("chat", {"n": 0}, "n", TOO_SMALL, {"n": 1}),
    ("chat", {"n": 129}, "n", TOO_BIG, {"n": 128}),
    ("chat", {"n": 10**9}, "n", TOO_BIG, {"n": 2, "temperature": 0}),
    ("chat", {"n": 10**40}, "n", TOO_BIG, {"n": 2}),
    ("chat", {"n": 1.5}, "n", TYPE, {"n": 1}),
    ("chat", {"n": True}, "n", TYPE, {"n": 1}),
    ("chat", {"max_tokens": 0}, "max_tokens", TOO_SMALL, {"max_tokens": 1}),
    ("text", {"max_tokens": -1}, "max_tokens", TOO_SMALL, {"max_tokens": 1}),
    (
        "chat",
        {"max_tokens": 3, "max_completion_tokens": 4},
        "max_tokens",
        VALUE,
        {"max_tokens": 4, "max_completion_tokens": 4},
    ),
    (
        "chat",
        {"min_tokens": 5, "max_tokens": 4},
        "min_tokens",
        VALUE,
        {"min_tokens": 4, "max_tokens": 4},
    ),
    ("chat", {"stop": list("abcde")}, "stop", "array_above_max_length", {"stop": list("abcd")}),
    ("chat", {"stop": [""]}, "stop", VALUE, {"stop": []}),
    ("chat", {"stop": ""}, "stop", VALUE, {"stop": "\n"}),
    ("chat", {"stop": "x" * 2048}, "stop", "string_above_max_length", {"stop": "x" * 1024}),
    ("chat", {"stop": {}}, "stop", TYPE, {"stop": "a"}),
    ("chat", {"stop": ["a", 1]}, "stop", TYPE, {"stop": ["a", "1"]}),
    (
        "chat",
        {"logprobs": True, "top_logprobs": 21},
        "top_logprobs",
        TOO_BIG,
        {"logprobs": True, "top_logprobs": 20},
    ),
    ("chat", {"top_logprobs": 2}, "top_logprobs", OTHER, {"logprobs": True, "top_logprobs": 2}),
    ("text", {"logprobs": 6}, "logprobs", TOO_BIG, {"logprobs": 5}),
    ("chat", {"logit_bias": {"abc": 1}}, "logit_bias", VALUE, {"logit_bias": {"12": 1}}),
    ("chat", {"logit_bias": {"1": 101}}, "logit_bias", VALUE, {"logit_bias": {"1": 100}}),
    ("chat", {"logit_bias": {"1": "a"}}, "logit_bias", VALUE, {"logit_bias": {"1": -100.0}}),
    ("chat", {"logit_bias": [1]}, "logit_bias", TYPE, {"logit_bias": {}}),
    (
        "chat",
        {"logit_bias": {str(i): 1 for i in range(10_000)}},
        "logit_bias",
        VALUE,
        {"logit_bias": {str(i): 1 for i in range(1024)}},
    ),
    ("chat", {"seed": 2**63}, "seed", TOO_BIG, {"seed": 2**63 - 1}),
    ("chat", {"seed": -(2**63) - 1}, "seed", TOO_SMALL, {"seed": -(2**63)}),
    ("chat", {"seed": "1"}, "seed", TYPE, {"seed": 1}),
    ("chat", {"stream": "yes"}, "stream", TYPE, {"stream": True}),
    (
        "chat",
        {"stream_options": {"include_usage": True}},
        "stream_options",
        OTHER,
        {"stream": True, "stream_options": {"include_usage": True}},
    ),
    (
        "chat",
        {"stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
        TYPE,
        {"stream": True, "stream_options": {"include_usage": None}},
    ),
    (
        "chat",
        {"prompt_logprobs": 1, "stream": True},
        "prompt_logprobs",
        OTHER,
        {"prompt_logprobs": 1},
    ),
    ("chat", {"tools": []}, "tools", "empty_array", {"tools": None}),
    ("chat", {"tools": [{}] * 129}, "tools", "array_above_max_length", {}),
    ("chat", {"tools": [{"type": "function"}]}, "tools[0].function", ABSENT, CALL),
    ("chat", {"tools": [{}]}, "tools[0].type", ABSENT, CALL),
    ("chat", {"tools": ["f"]}, "tools[0]", TYPE, CALL),
    ("chat", {"tools": [{"type": "custom"}]}, "tools[0].type", UNSUPPORTED, CALL),
    ("chat", function(name="a b"), "tools[0].function.name", VALUE, function(name="a_b-1")),
    ("chat", function(name="f", foo=1), "tools[0].function.foo", UNKNOWN, function(name="f")),
    (
        "chat",
        function(name="f", parameters=[]),
        "tools[0].function.parameters",
        TYPE,
        function(name="f", parameters={}),
    ),
    (
        "chat",
        function(name="f", parameters={"type": "string"}),
        "tools[0].function.parameters",
        "invalid_json_schema",
        function(name="f", parameters={"type": ["object", "null"]}),
    ),
    ("chat", function(name="f", strict=1), "tools[0].function.strict", TYPE, CALL),
    ("chat", {"tools": CALL["tools"] * 2}, "tools[1].function.name", VALUE, CALL),
    ("chat", {**CALL, "tool_choice": 5}, "tool_choice", VALUE, {**CALL, "tool_choice": "auto"}),
    (
        "chat",
        {**CALL, "tool_choice": "some"},
        "tool_choice",
        VALUE,
        {**CALL, "tool_choice": "none"},
    ),
    (
        "chat",
        {**CALL, "tool_choice": NAMED_G},
        "tool_choice",
        OTHER,
        {**CALL, "tool_choice": NAMED_F},
    ),
    ("chat", {"tool_choice": "auto"}, "tool_choice", OTHER, {"tool_choice": None}),
    (
        "chat",
        {**CALL, "response_format": {"type": "json_schema", "json_schema": NAMED_SCHEMA}},
        "response_format",
        VALUE,
        {**CALL, "response_format": {"type": "text"}},
    ),
    ("chat", {"response_format": {}}, "response_format.type", ABSENT, {}),
    ("chat", {"response_format": {"type": "xml"}}, "response_format", VALUE, {}),
    ("chat", {"response_format": {"type": "text", "a": 1}}, "response_format.a", UNKNOWN, {}),
    (
        "chat",
        {"response_format": {"type": "json_schema"}},
        "response_format",
        "invalid_json_schema",
        {"response_format": {"type": "json_schema", "json_schema": NAMED_SCHEMA}},
    ),
    (
        "chat",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format",
        "invalid_json_schema",
        {},
    ),
    (
        "chat",
        {"response_format": {"type": "json_object"}},
        "messages",
        OTHER,
        {"response_format": {"type": "json_object"}, **turn(content="JSON, please")},
    ),
    ("text", {"structured_outputs": {}}, "structured_outputs", VALUE, {}),
    ("text", {"structured_outputs": {"regex": 1}}, "structured_outputs.regex", TYPE, {}),
    (
        "text",
        {"structured_outputs": {"choice": []}},
        "structured_outputs.choice",
        "empty_array",
        {},
    ),
    (
        "text",
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        "structured_outputs",
        VALUE,
        {"structured_outputs": {"regex": "a"}},
    ),
    (
        "text",
        {"structured_outputs": {"regex": "a"}, "min_tokens": 2},
        "min_tokens",
        VALUE,
        {"structured_outputs": {"choice": ["a"]}},
    ),
    ("chat", {"foo": 1}, "foo", UNKNOWN, {}),
    ("chat", {"foo": None}, "foo", UNKNOWN, {}),
    ("chat", {"chat_template": "x"}, "chat_template", UNKNOWN, {"chat_template_kwargs": {"a": 1}}),
    ("chat", {"prompt_embeds": "x"}, "prompt_embeds", UNKNOWN, {}),
    ("chat", {"guided_regex": "x"}, "guided_regex", UNKNOWN, {}),
    ("chat", {"best_of": 1}, "best_of", UNKNOWN, {}),
    *(
        ("chat", {"chat_template_kwargs": kwargs}, "chat_template_kwargs", UNKNOWN, {})
        for kwargs in BAD_KWARGS
    ),
    ("chat", {"use_beam_search": 1}, "use_beam_search", TYPE, {"use_beam_search": True}),
    ("chat", {**BEAMS, "n": 17}, "n", TOO_BIG, {**BEAMS, "n": 16}),
    (
        "chat",
        {**BEAMS, "temperature": 0.5},
        "temperature",
        UNSUPPORTED,
        {**BEAMS, "temperature": 0},
    ),
    ("chat", {**BEAMS, "top_p": 0.5}, "top_p", UNSUPPORTED, {**BEAMS, "top_p": 1}),
    ("chat", {**BEAMS, "top_k": 3}, "top_k", UNSUPPORTED, {**BEAMS, "seed": 3, "stream": True}),
    ("chat", {**BEAMS, "min_p": 0.1}, "min_p", UNSUPPORTED, {**BEAMS, "repetition_penalty": 1.2}),
    ("chat", {**BEAMS, "stop": "x"}, "stop", UNSUPPORTED, {**BEAMS, "stop_token_ids": [1]}),
    (
        "text",
        {**BEAMS, "structured_outputs": {"regex": "a"}},
        "structured_outputs",
        UNSUPPORTED,
        {**BEAMS, "temperature": None, "length_penalty": 0.5},
    ),
    ("text", {**BEAMS, "best_of": 17}, "best_of", TOO_BIG, {**BEAMS, "best_of": 16}),
    ("chat", {"store": True}, "store", UNSUPPORTED, {"store": False}),
    ("chat", {"service_tier": "flex"}, "service_tier", UNSUPPORTED, {"service_tier": "auto"}),
    ("chat", {"modalities": ["audio"]}, "modalities", UNSUPPORTED, {"modalities": ["text"]}),
    ("chat", {"verbosity": "high"}, "verbosity", UNSUPPORTED, {"verbosity": "medium"}),
    ("chat", {"reasoning_effort": "much"}, "reasoning_effort", VALUE, {"reasoning_effort": "low"}),
    ("chat", {"functions": [{}]}, "functions", UNSUPPORTED, {"functions": None}),
    ("chat", {"audio": {}}, "audio", UNSUPPORTED, {"audio": None}),
    ("chat", {"user": 5}, "user", TYPE, {"user": "me", "metadata": {"a": "b"}}),
    (
        "chat",
        {"continue_final_message": True},
        "continue_final_message",
        VALUE,
        {"continue_final_message": True, "messages": [*HELLO, {"role": "assistant"}]},
    ),
    ("text", {"prompt": MISSING}, "prompt", ABSENT, {}),
    ("text", {"prompt": None}, "prompt", TYPE, {}),
    ("text", {"prompt": []}, "prompt", "empty_array", {"prompt": ["a"]}),
    ("text", {"prompt": [[]]}, "prompt", "empty_array", {"prompt": [[1]]}),
    ("text", {"prompt": [-1]}, "prompt", VALUE, {"prompt": [0]}),
    ("text", {"prompt": [1, "a"]}, "prompt", TYPE, {"prompt": [1, 2]}),
    ("text", {"prompt": [True]}, "prompt", TYPE, {"prompt": [1]}),
    ("text", {"prompt": [1.5]}, "prompt", TYPE, {"prompt": [1]}),
    ("text", {"prompt": {}}, "prompt", TYPE, {"prompt": "{}"}),
    (
        "text",
        {"prompt": ["a"] * 5000},
        "prompt",
        "array_above_max_length",
        {"prompt": ["a"] * 2048},
    ),
    ("text", {"prompt": ["a"] * 20, "n": 128}, "n", TOO_BIG, {"prompt": ["a"] * 16, "n": 128}),
    ("text", {"suffix": 5}, "suffix", TYPE, {"suffix": "x"}),
    ("text", {"suffix": "x", "echo": True}, "echo", UNSUPPORTED, {"suffix": "", "echo": True}),
    ("text", {"best_of": 129}, "best_of", TOO_BIG, {"best_of": 128}),
    ("text", {"best_of": 3, "stream": True}, "best_of", "invalid_request", {"best_of": 3}),
    (
        "text",
        {"prompt": ["a"] * 20, "best_of": 128},
        "best_of",
        TOO_BIG,
        {"prompt": ["a"] * 16, "best_of": 128},
    ),
    ("text", {"best_of": 1, "n": 2}, "best_of", VALUE, {"best_of": 2, "n": 2}),
    ("embed", {"input": []}, "input", "empty_array", {"input": ["a"]}),
    ("embed", {"input": ""}, "input", VALUE, {"input": " "}),
    ("embed", {"input": [[]]}, "input", "empty_array", {"input": [[1], [2]]}),
    ("embed", {"input": ["a"] * 2049}, "input", "array_above_max_length", {"input": ["a"] * 2048}),
    ("embed", {"dimensions": 0}, "dimensions", TOO_SMALL, {"dimensions": 1}),
    ("embed", {"encoding_format": "hex"}, "encoding_format", VALUE, {"encoding_format": "base64"}),
    ("api", {"messages": 5}, "messages", TYPE, {"messages": "User: hi\nAssistant:"}),
    ("api", {"messages": []}, "messages", "empty_array", {"repetition_penalty": 1.1}),
]


@pytest.mark.parametrize(
    ("kind", "fields", "param", "code"),
    [row[:4] for row in ROWS],
    ids=lambda value: str(value)[:40],
)
def test_a_fault_is_named(kind: str, fields: dict[str, Any], param: str, code: str) -> None:
    error = refused(kind, fields)
    assert (error.param, error.code) == (param, code)


@pytest.mark.parametrize(("kind", "fields"), [(row[0], row[4]) for row in ROWS])
def test_its_neighbour_is_accepted(kind: str, fields: dict[str, Any]) -> None:
    read(kind, fields)


@pytest.mark.parametrize("name", sorted(ChatCompletionRequest.model_fields.keys() - CHAT.keys()))
def test_null_means_the_default_in_chat(name: str) -> None:
    assert getattr(read("chat", {name: None}), name) == getattr(read("chat", {}), name)


@pytest.mark.parametrize("name", sorted(CompletionRequest.model_fields.keys() - TEXT.keys()))
def test_null_means_the_default_in_completions(name: str) -> None:
    assert getattr(read("text", {name: None}), name) == getattr(read("text", {}), name)


def test_the_seeds_defaults() -> None:
    chat, text = read("chat", {}), read("text", {})
    for request in (chat, text):
        assert (request.temperature, request.top_p, request.top_k, request.n) == (0.7, 1.0, -1, 1)
    assert (chat.token_limit, text.token_limit, chat.seed) == (None, 16, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"a":',
        b'{"model":"m",}',
        b'{"model":"a\tb"}',
        b'{"model":"\xff"}',
        b"[" * 100_000,
        b'{"n":' + b"1" * 10**6 + b"}",
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
    ],
)
def test_a_body_that_is_no_json(body: bytes) -> None:
    with pytest.raises(TriremeError, match=r"^We could not parse the JSON body") as caught:
        parse(body, ChatCompletionRequest)
    assert (caught.value.code, caught.value.param) == ("invalid_body", None)


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"42", b"null"])
def test_a_body_that_is_no_object(body: bytes) -> None:
    with pytest.raises(TriremeError) as caught:
        parse(body, ChatCompletionRequest)
    assert (caught.value.code, caught.value.param) == ("invalid_type", None)


def test_a_number_that_overflows_is_a_bad_value() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"temperature":1e999}'
    with pytest.raises(TriremeError) as caught:
        parse(body, ChatCompletionRequest)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "temperature")


def test_half_a_surrogate_pair_is_named() -> None:
    body = rb'{"model":"m","messages":[{"role":"user","content":"\ud800"}]}'
    with pytest.raises(TriremeError) as caught:
        parse(body, ChatCompletionRequest)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "messages[0].content")
    whole = body.replace(rb"\ud800", rb"\ud83d\ude00")
    assert parse(whole, ChatCompletionRequest).messages[0].content == "😀"


def test_a_half_pair_in_a_key_can_be_answered() -> None:
    with pytest.raises(TriremeError) as caught:
        parse(rb'{"\ud800": "\ud800"}', ChatCompletionRequest)
    assert str(caught.value.param).isascii()


@pytest.mark.parametrize("name", ["response_format", "structured_outputs", "tools"])
def test_a_schema_that_is_too_deep_to_be_read_is_named(name: str) -> None:
    body = b'{"metadata":{"a":["]"]},\n"%s":{"x":%s' % (name.encode(), b"[" * 500)
    with pytest.raises(TriremeError) as caught:
        parse(body, ChatCompletionRequest)
    assert (caught.value.code, caught.value.param) == ("invalid_json_schema", name)
    with pytest.raises(TriremeError) as caught:
        parse(body.replace(name.encode(), b"metadata"), ChatCompletionRequest)
    assert (caught.value.code, caught.value.param) == ("invalid_body", None)


def test_lenient_drops_what_changes_nothing() -> None:
    assert read("chat", {"foo": 1, "cache": {"ttl": 3}}, lenient=True).model == "m"
    guided = refused("chat", {"guided_json": {}}, lenient=True)
    assert guided.code == UNKNOWN
    assert guided.message.endswith("Use 'structured_outputs.json'.")
    assert refused("chat", {"store": True}, lenient=True).code == UNSUPPORTED


def test_messages_are_short_and_echo_little() -> None:
    for fields in ({"x" * 5000: 1}, {"temperature": "y" * 5000}, {"service_tier": "z" * 5000}):
        error = refused("chat", fields)
        assert len(error.message) < 400
        assert len(error.param or "") <= 100


def test_parts_are_joined_by_line_breaks() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read("chat", turn(content=parts)).messages[0].text == "a\nb"


def test_token_check_names_the_prompt_at_fault() -> None:
    good = {"model": "m", "prompt": "p", "max_tokens": 0}
    parse(to_json({"prompts": [good]}), TokenCheckRequest)
    with pytest.raises(TriremeError) as caught:
        parse(to_json({"prompts": [good, {**good, "prompt": 1}]}), TokenCheckRequest)
    assert (caught.value.param, caught.value.code) == ("prompts[1].prompt", TYPE)
