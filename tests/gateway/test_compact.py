"""What goes to workers is what pydantic would send."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import from_json

from gateway.compact import compact_json
from protocol.generation import EmbedRequest, GenerateRequest, TokenizeRequest

SAMPLING = {"n": 2, "temperature": 0.0, "seed": 2**63 - 1, "stop": ["\n", "é\u2028"]}


def generate(**fields: Any) -> GenerateRequest:
    return GenerateRequest.model_validate({"request_id": "r", "model": "m", **fields})


@pytest.mark.parametrize(
    "message",
    [
        generate(prompt="p"),
        generate(messages=[{"role": "user", "content": "hü\u0000"}], whole=True, conv_stops=True),
        generate(
            prompt_ids=[1, 2],
            sampling=SAMPLING,
            resume=[{"ids": [3], "ended": True}, {"ids": []}],
            deadline_s=0.1 + 0.2,
        ),
        generate(
            prompt="p",
            structure={"kind": "json_schema", "value": {"const": 10**40, "x": [None, 1e300]}},
            sampling={"logit_bias": {"7": -100.0}, "logprobs": 0},
        ),
        EmbedRequest(request_id="e", model="m", inputs=["a", [1, 2]], dimensions=3),
        TokenizeRequest(model="m", prompt="p"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_it_is_what_pydantic_writes(message: BaseModel) -> None:
    found = compact_json(message)
    assert type(message).model_validate_json(found) == message
    expected = from_json(message.model_dump_json(exclude_defaults=True))
    if isinstance(message, GenerateRequest):
        expected.setdefault("sampling", {})  # is not compared as a whole
    assert from_json(found) == expected
