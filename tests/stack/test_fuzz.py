"""One thing wrong, of any kind, in a request that was right: never a 500, a 422 or silence."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stack.processes import running

MODEL = "m"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SHARED: dict[str, Any] = {
    "model": MODEL,
    "temperature": 1.0,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.0,
    "n": 2,
    "stop": ["x"],
    "stop_token_ids": [7],
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
    "length_penalty": 1.0,
    "logit_bias": {"5": 1.0},
    "seed": 3,
    "min_tokens": 1,
    "max_tokens": 4,
    "priority": 0,
    "user": "ann",
    "metadata": {"a": "b"},
    "ignore_eos": True,
    "echo": False,
    "structured_outputs": None,
    "return_tokens_as_token_ids": False,
}
RIGHT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **SHARED,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}], "name": "ann"},
            {"role": "assistant", "content": "Hi", "refusal": None},
            {"role": "user", "content": "Go on"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {"type": "text"},
        "tools": [TOOL],
        "tool_choice": "none",
        "modalities": ["text"],
        "chat_template_kwargs": {},
    },
    "/v1/completions": {
        **SHARED,
        "prompt": ["Hello", [1, 2, 3]],
        "logprobs": 2,
        "best_of": 2,
        "prompt_logprobs": 1,
        "stream": False,
    },
    "/v1/embeddings": {
        "model": MODEL,
        "input": ["Hello", [1, 2, 3]],
        "encoding_format": "float",
        "dimensions": 8,
        "user": "ann",
    },
    "/v1/score": {"model": MODEL, "text_1": "Hello", "text_2": ["Hi", "Bye"], "user": "ann"},
    "/v1/rerank": {
        "model": MODEL,
        "query": "Hello",
        "documents": ["Hi", {"text": "Bye"}],
        "top_n": 1,
        "return_documents": True,
    },
    "/tokenize": {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hello"}],
        "add_special_tokens": False,
        "return_token_strs": True,
        "add_generation_prompt": True,
        "chat_template_kwargs": {},
        "tools": [TOOL],
    },
    "/detokenize": {"model": MODEL, "tokens": [1, 2, 3]},
    "/api/v1/token_check": {"prompts": [{"model": MODEL, "prompt": "Hello", "max_tokens": 3}]},
}


class Raw(str):
    """JSON as it is."""


EXTREMES: list[Any] = [
    *(0, -1, 1, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**400),
    *(0.0, -0.0, 0.5, 5e-324, 1.7e308, Raw("1e999"), Raw("-1e999"), Raw("NaN"), Raw("-Infinity")),
    *("", " ", "\0", "x" * 70_000, "\u202e", "\ud83d\ude00", Raw('"\\ud800"'), "../../etc/passwd"),
    *(True, False, None, [], {}, [[]], [{}], [None], {"": None}, [[[[[[]]]]]], [1, "a", None]),
    *(
        Raw("[" * 150 + "]" * 150),
        Raw("[" * 5000 + "]" * 5000),
        Raw('{"a":' * 300 + "1" + "}" * 300),
    ),
    *(["a"] * 3000, [1] * 3000, {str(number): number for number in range(3000)}),
    *("auto", "required", "json_object", {"type": "json_object"}, {"type": "json_schema"}),
    *({"type": []}, {"type": "function", "function": {"name": "f"}}, {"regex": "("}, {"json": {}}),
]
JUNK = st.one_of(
    st.sampled_from(EXTREMES),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=8,
    ),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    if isinstance(value, dict):
        inner = list(value.items())
    else:
        inner = list(enumerate(value)) if isinstance(value, list) else []
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


def encoded(value: Any, path: tuple[Any, ...], how: str, junk: Any) -> str:
    """The value as JSON, with something wrong at that place."""
    if isinstance(value, Raw):
        return value
    here = path[0] if path else None
    if isinstance(value, list):
        kept = [
            encoded(one, path[1:] if number == here else (), how, junk)
            if path != (number,)
            else wrong(one, how, junk)
            for number, one in enumerate(value)
        ]
        return f"[{','.join(one for one in kept if one)}]"
    if isinstance(value, dict):
        items = []
        for name, one in value.items():
            if path == (name,):
                text = wrong(one, how, junk)
                again = how == "twice"
            else:
                text, again = encoded(one, path[1:] if name == here else (), how, junk), False
            key = json.dumps(junk if path == (name,) and how == "renamed" else name)
            items += [f"{key}:{text}"] * bool(text)
            items += [f"{key}:{json.dumps(one)}"] * again
        return "{" + ",".join(items) + "}"
    return json.dumps(value)


def wrong(value: Any, how: str, junk: Any) -> str:
    match how:
        case "deleted":
            return ""
        case "nested":
            return f"[{json.dumps(value)}]"
        case "renamed":
            return json.dumps(value)
        case _:
            return encoded(junk, (), "", None)


@st.composite
def mutants(draw: st.DrawFn) -> tuple[str, bytes]:
    path = draw(st.sampled_from(sorted(RIGHT)))
    place = draw(st.sampled_from(list(places(RIGHT[path]))))
    how = draw(st.sampled_from(["replaced"] * 6 + ["twice", "deleted", "nested", "renamed"]))
    junk = draw(st.text(max_size=200) if how == "renamed" else JUNK)
    return path, encoded(RIGHT[path], place, how, junk).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[http.client.HTTPConnection]:
    """A connection that is kept, to a gateway before a simulated model of a short context."""
    with running(tmp_path_factory.mktemp("fuzz")) as stack:
        stack.add_worker("--engine", "sim", "--model-names", MODEL, "--max-model-len", "512")
        stack.wait_serving()
        connection = http.client.HTTPConnection("127.0.0.1", stack.gateway.port, timeout=20)
        yield connection
        connection.close()


def posted(gateway: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, str, bytes]:
    gateway.request("POST", path, body, {"Content-Type": "application/json"})
    answer = gateway.getresponse()
    return answer.status, answer.headers["Content-Type"], answer.read()


@pytest.mark.parametrize("path", RIGHT)
def test_what_is_mutated_is_right(gateway: http.client.HTTPConnection, path: str) -> None:
    status, _, body = posted(gateway, path, json.dumps(RIGHT[path]).encode())
    assert status == 200, body


@settings(
    max_examples=800,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(mutant=mutants())
def test_one_thing_wrong_is_told_or_harmless(
    gateway: http.client.HTTPConnection, mutant: tuple[str, bytes]
) -> None:
    path, sent = mutant
    status, kind, body = posted(gateway, path, sent)
    if status == 200:
        if kind.startswith("text/event-stream"):
            assert body.endswith(b"data: [DONE]\n\n"), body[-500:]
        else:
            assert "error" not in json.loads(body)
        return
    assert status in (400, 404), (status, body[:300])
    assert kind == "application/json"
    assert len(body) < 2048
    error = json.loads(body)["error"]
    assert error["message"]
    assert error["param"] is None or 0 < len(error["param"]) <= 100
