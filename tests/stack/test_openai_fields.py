"""Every field of OpenAI's requests and of ours, sent to real models: what happens is what
`/v1/capabilities` says."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from gateway.capabilities import OPERATIONS
from tests.stack.processes import Stack, running

SPEC: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("openai_request_fields.json").read_text()
)["requests"]
SPEC_OF = {
    "chat": SPEC["CreateChatCompletionRequest"],
    "completions": SPEC["CreateCompletionRequest"],
    "embeddings": SPEC["CreateEmbeddingRequest"],
    "responses": SPEC["CreateResponse"],
}
HELLO = [{"role": "user", "content": "Hello, answer in JSON"}]
BASE: dict[str, dict[str, Any]] = {
    "chat": {"messages": HELLO, "max_tokens": 2},
    "completions": {"prompt": "Hello", "max_tokens": 2},
    "embeddings": {"input": "Hello"},
    "responses": {"input": "Hello, answer in JSON", "max_output_tokens": 2},
    "messages": {"messages": HELLO, "max_tokens": 2},
    "score": {"text_1": "Hello", "text_2": ["Hi", "Bye"]},
    "rerank": {"query": "Hello", "documents": ["Hi", "Bye"]},
    "tokenize": {"prompt": "Hello"},
    "detokenize": {"tokens": [5, 6]},
}
FUNCTION = {"type": "function", "function": {"name": "f"}}
FLAT_FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
ABSENT = object()
STORED = "the id of a stored response"
PAIRS_BY_OTHER_NAMES = {"text_1": ABSENT, "text_2": ABSENT, "queries": "Hello", "documents": "Hi"}

# a valid value that is not the default, and what must stand beside it
COMMON: dict[str, tuple[Any, dict[str, Any]]] = {
    "temperature": (1.5, {}),
    "top_p": (0.5, {}),
    "top_k": (5, {}),
    "min_p": (0.1, {}),
    "n": (2, {}),
    "stop": (["x", "y"], {}),
    "stream": (True, {}),
    "stream_options": ({"include_usage": True}, {"stream": True}),
    "presence_penalty": (1, {}),
    "frequency_penalty": (-1.5, {}),
    "repetition_penalty": (1.2, {}),
    "length_penalty": (0.5, {}),
    "logit_bias": ({"5": 10}, {}),
    "seed": (7, {}),
    "use_beam_search": (True, {}),
    "stop_token_ids": ([5], {}),
    "include_stop_str_in_output": (True, {}),
    "ignore_eos": (True, {}),
    "min_tokens": (1, {}),
    "skip_special_tokens": (False, {}),
    "echo": (True, {}),
    "prompt_logprobs": (1, {}),
    "structured_outputs": ({"choice": ["yes", "no"]}, {}),
    "return_tokens_as_token_ids": (True, {}),
    "priority": (1, {}),
    "user": ("ann", {}),
    "metadata": ({"a": "b"}, {}),
    "store": (True, {}),
    "service_tier": ("flex", {}),
    "prompt_cache_key": ("k", {}),
    "prompt_cache_retention": ("24h", {}),
    "prompt_cache_options": ({"mode": "explicit"}, {}),
    "safety_identifier": ("s", {}),
}
VALUES: dict[str, dict[str, tuple[Any, dict[str, Any]]]] = {
    "chat": {
        **COMMON,
        "messages": ([*HELLO, {"role": "assistant", "content": "Hi"}, *HELLO], {}),
        "max_tokens": (3, {}),
        "max_completion_tokens": (3, {"max_tokens": ABSENT}),
        "logprobs": (True, {}),
        "top_logprobs": (2, {"logprobs": True}),
        "add_generation_prompt": (False, {}),
        "continue_final_message": (
            True,
            {"messages": [*HELLO, {"role": "assistant", "content": "Hi"}]},
        ),
        "chat_template_kwargs": ({"enable_thinking": False}, {}),
        "response_format": ({"type": "json_object"}, {}),
        "tools": ([FUNCTION], {"tool_choice": "none"}),
        "tool_choice": ("required", {"tools": [FUNCTION]}),
        "parallel_tool_calls": (False, {}),
        "modalities": (["text", "audio"], {}),
        "verbosity": ("high", {}),
        "reasoning_effort": ("high", {}),
        "audio": ({"voice": "alloy", "format": "wav"}, {}),
        "prediction": ({"type": "content", "content": "Hi"}, {}),
        "web_search_options": ({}, {}),
        "moderation": ({"model": "omni-moderation-latest"}, {}),
        "functions": ([{"name": "f"}], {}),
        "function_call": ("auto", {}),
    },
    "completions": {
        **COMMON,
        "prompt": (["Hello", "Bye"], {}),
        "max_tokens": (3, {}),
        "logprobs": (2, {}),
        "best_of": (2, {}),
        "add_special_tokens": (False, {}),
        "suffix": ("end", {}),
    },
    "embeddings": {
        "input": (["Hello", "Bye"], {}),
        "dimensions": (8, {}),
        "encoding_format": ("base64", {}),
        "user": ("ann", {}),
        "engine": ("e", {}),
    },
    "responses": {
        "input": ([{"role": "user", "content": "Hello"}], {}),
        "instructions": ("Be brief.", {}),
        "previous_response_id": (STORED, {}),
        "store": (False, {}),
        "stream": (True, {}),
        "stream_options": ({"include_obfuscation": False}, {"stream": True}),
        "max_output_tokens": (3, {}),
        "temperature": (1.5, {}),
        "top_p": (0.5, {}),
        "top_logprobs": (2, {"include": ["message.output_text.logprobs"]}),
        "include": (["message.output_text.logprobs"], {}),
        "text": ({"format": {"type": "json_object"}}, {}),
        "reasoning": ({"effort": "high"}, {}),
        "tools": ([FLAT_FUNCTION], {"tool_choice": "none"}),
        "tool_choice": ("required", {"tools": [FLAT_FUNCTION]}),
        "parallel_tool_calls": (False, {}),
        "max_tool_calls": (2, {}),
        "metadata": ({"a": "b"}, {}),
        "truncation": ("auto", {}),
        "background": (True, {}),
        "service_tier": ("flex", {}),
        "user": ("ann", {}),
        "safety_identifier": ("s", {}),
        "prompt_cache_key": ("k", {}),
        "prompt_cache_retention": ("24h", {}),
        "prompt_cache_options": ({"mode": "explicit"}, {}),
        "prompt": ({"id": "p"}, {}),
        "conversation": ("c", {}),
        "context_management": ([{"type": "compaction"}], {}),
        "moderation": ({"model": "omni-moderation-latest"}, {}),
    },
    "messages": {
        "messages": ([*HELLO, {"role": "assistant", "content": "Hi"}, *HELLO], {}),
        "system": ("Be brief.", {}),
        "tools": ([TOOL], {"tool_choice": {"type": "none"}}),
        "tool_choice": ({"type": "any"}, {"tools": [TOOL]}),
        "thinking": ({"type": "disabled"}, {}),
        "output_config": (
            {"format": {"type": "json_schema", "schema": {"type": "object"}}},
            {},
        ),
        "cache_control": ({"type": "ephemeral"}, {}),
        "max_tokens": (3, {}),
        "stop_sequences": (["x", "y"], {}),
        "temperature": (0.5, {}),
        "top_p": (0.5, {}),
        "top_k": (5, {}),
        "stream": (True, {}),
        "metadata": ({"user_id": "ann"}, {}),
        "service_tier": ("standard_only", {}),
        "speed": ("fast", {}),
        "container": ("c", {}),
        "context_management": ({"edits": []}, {}),
        "diagnostics": ({}, {}),
        "inference_geo": ("eu", {}),
        "mcp_servers": ([{"name": "s"}], {}),
        "user_profile_id": ("u", {}),
        "workspace_id": ("w", {}),
    },
    "score": {
        "text_1": (["Hello", "Hi"], {}),
        "text_2": ("Hi", {}),
        "queries": ("Hello", PAIRS_BY_OTHER_NAMES),
        "documents": (["Hi"], PAIRS_BY_OTHER_NAMES),
        "user": ("ann", {}),
    },
    "rerank": {
        "query": ("Bye", {}),
        "documents": (["Hi", {"text": "Bye"}], {}),
        "top_n": (1, {}),
        "return_documents": (False, {}),
        "user": ("ann", {}),
    },
    "tokenize": {
        "prompt": ("Bye", {}),
        "messages": (HELLO, {"prompt": ABSENT}),
        "add_special_tokens": (False, {}),
        "return_token_strs": (True, {}),
        "add_generation_prompt": (False, {"messages": HELLO, "prompt": ABSENT}),
        "continue_final_message": (
            True,
            {"messages": [*HELLO, {"role": "assistant", "content": "Hi"}], "prompt": ABSENT},
        ),
        "chat_template_kwargs": ({"enable_thinking": False}, {"messages": HELLO, "prompt": ABSENT}),
        "tools": ([FUNCTION], {"messages": HELLO, "prompt": ABSENT}),
    },
    "detokenize": {"tokens": ([7], {})},
}
MODELS = ("simulated-model", "fastchat-model", "trireme-demo", "tiny-t5")
"""On the engine sim, the same by FastChat's wire, on the engines paged and generate."""


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("simulated")) as stack:
        stack.add_worker("--engine", "sim", "--model-names", "simulated-model")
        stack.wait_serving()
        by_fastchat(stack, "fastchat-model")
        yield stack


def by_fastchat(stack: Stack, model: str) -> None:
    """A worker that the fleet knows by FastChat's wire alone."""
    flags = ("--engine", "sim", "--model-names", model, "--no-register")
    worker = stack.add_worker(*flags)
    worker.wait_ready()
    status = {"model_names": [model], "speed": 1, "queue_length": 0}
    body = {"worker_name": worker.url, "check_heart_beat": False, "worker_status": status}
    httpx.post(f"{stack.controller.url}/register_worker", json=body).raise_for_status()
    deadline = time.monotonic() + 10
    while model not in httpx.get(f"{stack.gateway.url}/v1/models").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def stacks(simulated: Stack, real_stack: Stack) -> dict[str, Stack]:
    return {model: simulated if model in MODELS[:2] else real_stack for model in MODELS}


@pytest.fixture(scope="module")
def table(stacks: dict[str, Stack]) -> dict[str, Any]:
    """What is told of each model."""
    found: dict[str, Any] = {}
    for stack in stacks.values():
        answer = httpx.get(f"{stack.gateway.url}/v1/capabilities", timeout=20).json()
        found |= {model["id"]: model for model in answer["data"]}
    return found


def sent(stack: Stack, model: str, operation: str, fields: dict[str, Any]) -> httpx.Response:
    body = {"model": model, **BASE[operation], **fields}
    if body.get("previous_response_id") == STORED:
        body["previous_response_id"] = sent(stack, model, operation, {}).json()["id"]
    return stack.post(
        OPERATIONS[operation].path, {name: one for name, one in body.items() if one is not ABSENT}
    )


def refused(answer: httpx.Response, name: str) -> bool:
    """Whether it is a 400 that names the field; Anthropic's errors do so in their message."""
    error = answer.json()["error"] if answer.status_code == 400 else {}
    if "param" in error:
        return str(error["param"]).partition(".")[0] == name
    return bool(re.search(rf"(^|'){name}\b", error.get("message", "")))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_field_of_openai_and_of_ours_is_in_the_table_and_is_sent_here(operation: str) -> None:
    ours = set(OPERATIONS[operation].body.model_fields)
    assert SPEC_OF.get(operation, {}).keys() <= ours
    assert ours == VALUES[operation].keys() | {"model"}


@pytest.mark.parametrize(
    ("operation", "name"),
    [(operation, name) for operation in SPEC_OF for name in VALUES[operation]],
)
def test_the_values_sent_here_are_valid_by_openais_document(operation: str, name: str) -> None:
    if name in SPEC_OF[operation]:
        jsonschema.validate(VALUES[operation][name][0], SPEC_OF[operation][name])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("operation", "name"), [(operation, name) for operation in VALUES for name in VALUES[operation]]
)
def test_a_field_is_answered_as_the_table_says(
    stacks: dict[str, Stack], table: dict[str, Any], model: str, operation: str, name: str
) -> None:
    stack, told = stacks[model], table[model]["operations"][operation]
    if not told["served"]:
        assert refused(sent(stack, model, operation, {}), "model")
        return
    fields = told["fields"]
    entry, (value, beside) = fields[name], VALUES[operation][name]
    tools_are_told = fields.get("tools", {}).get("support") == "honoured"
    if name in ("tools", "tool_choice") and not tools_are_told:
        beside = {}
    answer = sent(stack, model, operation, {**beside, name: value})
    if entry["support"] == "honoured":
        assert answer.status_code == 200, answer.text
        return
    assert refused(answer, name), answer.text
    takes = entry["accepts"].get("enum", []) if entry["support"] == "default_only" else []
    for harmless in (*takes, None):
        if name == "tool_choice" and harmless == "auto" and not tools_are_told:
            continue  # it needs tools, which this model is not told of
        beside = beside if harmless is not None else {}
        answer = sent(stack, model, operation, {**beside, name: harmless})
        assert answer.status_code == 200, answer.text


def test_a_model_is_the_one_that_was_asked_for(stacks: dict[str, Stack]) -> None:
    for model, stack in stacks.items():
        for operation in SPEC_OF:
            answer = sent(stack, model, operation, {})
            assert (answer.status_code, answer.json()["model"]) == (200, model)
            assert sent(stack, "other", operation, {}).status_code == 404
