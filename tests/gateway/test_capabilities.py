"""The table of capabilities follows from the requests' types and from what workers say."""

from __future__ import annotations

from typing import Any, get_args

import aiohttp
import pytest

from gateway.capabilities import OPERATIONS, capabilities, fields_of
from gateway.fastchat_client import NATIVE_ONLY, needs_native
from gateway.fleet_view import FleetView, Snapshot
from gateway.openapi import DESCRIBED
from protocol.fleet import Capability, Feature, FleetSnapshot, ModelRecord, WorkerRecord
from protocol.generation import GenerateRequest
from protocol.openai import CapabilityList, ChatCompletionRequest
from tests.gateway.fakes import MODEL, FakeWorker, record, stack

HELD = {"structured_outputs", "response_format", "tool_choice"}
"""Fields that need an engine with structured output."""


ALL = get_args(Feature)


def worker(number: int, *, wire: Any = "native", **fields: Any) -> WorkerRecord:
    models = (ModelRecord(name="m", **fields),)
    return record(f"w{number}", f"http://127.0.0.1:{number}", models=models, wire=wire)


def fleet(*workers: WorkerRecord) -> Snapshot:
    view = FleetView(["c"])
    view.observe("c", FleetSnapshot(epoch="e", version=1, complete=True, workers=workers), 0.0)
    return view.snapshot


def told(*workers: WorkerRecord) -> dict[str, Any]:
    (model,) = capabilities(fleet(*workers), lenient=False)["data"]
    found: dict[str, Any] = model
    return found


def support(model: dict[str, Any], operation: str) -> dict[str, str]:
    fields = model["operations"][operation]["fields"]
    return {name: entry["support"] for name, entry in fields.items()}


def test_a_field_is_told_with_its_limits_and_default() -> None:
    fields = told(worker(1))["operations"]["chat"]["fields"]
    temperature = dict(fields["temperature"])
    assert temperature.pop("description")
    assert temperature == {
        "support": "honoured",
        "default": 0.7,
        "accepts": {"type": "number", "minimum": 0, "maximum": 2},
    }
    assert fields["messages"]["required"] is True
    assert fields["user"]["no_effect"] is True
    assert fields["store"]["support"] == "default_only"
    assert fields["store"]["accepts"]["enum"] == [False]
    assert (fields["audio"]["support"], fields["audio"]["accepts"]) == ("refused", {"type": "null"})


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_field_of_a_request_is_told(operation: str) -> None:
    fields = OPERATIONS[operation].body.model_fields
    assert (
        support(told(worker(1, capabilities=get_args(Capability))), operation).keys()
        == fields.keys()
    )


def test_an_operation_that_a_model_does_not_do_is_told_so() -> None:
    model = told(worker(1, capabilities=("embeddings",)))
    served = {name for name, one in model["operations"].items() if one["served"]}
    assert served == {"embeddings", "tokenize", "detokenize"}
    assert "fields" not in model["operations"]["chat"]


def test_an_engine_without_structured_output_is_told_so() -> None:
    model = told(worker(1, engine="generate", features=()))
    chat, text = support(model, "chat"), support(model, "completions")
    assert chat["structured_outputs"] == text["structured_outputs"] == "refused"
    fields = model["operations"]["chat"]["fields"]
    assert chat["prompt_logprobs"] == "refused"
    assert fields["chat_template_kwargs"]["accepts"] == {"enum": [{}]}
    assert fields["response_format"]["support"] == "default_only"
    assert fields["response_format"]["accepts"] == {"enum": [{"type": "text"}]}
    assert model["engines"] == ["generate"]


@pytest.mark.parametrize("features", [None, ALL, (*ALL, "new")])
def test_a_lack_is_told_only_when_a_worker_says_so(features: Any) -> None:
    assert HELD & support(told(worker(1, features=features)), "chat").keys() == HELD
    chat = support(told(worker(1, features=features)), "chat")
    assert {chat[name] for name in HELD} == {"honoured"}


def test_a_field_is_honoured_when_every_worker_does_it() -> None:
    able, lacking = worker(1, features=ALL), worker(2, features=())
    assert support(told(able, lacking), "chat")["structured_outputs"] == "refused"


def test_a_fastchat_worker_takes_what_its_wire_carries() -> None:
    model = told(worker(1, wire="fastchat"))
    chat, text = support(model, "chat"), support(model, "completions")
    assert {chat["seed"], chat["tools"], chat["structured_outputs"]} == {"refused"}
    assert {chat["min_p"], chat["priority"], chat["response_format"]} == {"default_only"}
    assert {chat["temperature"], chat["stop"], text["logprobs"]} == {"honoured"}
    accepts = model["operations"]["completions"]["fields"]["prompt"]["accepts"]
    assert "integer" not in str(accepts)


def test_a_fastchat_worker_gives_no_tokens_and_no_scores() -> None:
    operations = told(worker(1, wire="fastchat"))["operations"]
    served = {name for name, one in operations.items() if one["served"]}
    assert served == {"chat", "completions", "embeddings", "responses", "messages"}


def test_beside_a_native_worker_a_fastchat_worker_takes_nothing_away() -> None:
    model = told(worker(1, wire="fastchat"), worker(2, features=ALL))
    chat = support(model, "chat")
    assert {chat["seed"], chat["tools"], chat["structured_outputs"]} == {"honoured"}


def test_what_fastchats_wire_lacks_are_fields_of_ours() -> None:
    known = set().union(*(body.model_fields for body in DESCRIBED.bodies))
    assert known >= NATIVE_ONLY
    asked = GenerateRequest(request_id="r", model="m", prompt="a", add_special_tokens=False)
    assert needs_native(asked) == "add_special_tokens"


def test_the_order_is_for_readers() -> None:
    names = list(fields_of(ChatCompletionRequest))
    assert set(names[:2]) == {"model", "messages"}
    assert names.index("temperature") < names.index("store") < names.index("audio")


async def test_the_route_tells_every_model(http: aiohttp.ClientSession) -> None:
    for lenient in (False, True):
        async with (
            stack(FakeWorker(), lenient=lenient) as s,
            http.get(s.url + "/v1/capabilities") as answer,
        ):
            assert answer.status == 200
            found = CapabilityList.model_validate(await answer.json())
        assert found.unknown_fields == ("ignored" if lenient else "refused")
        assert [(model.id, model.context_length) for model in found.data] == [(MODEL, 2048)]
