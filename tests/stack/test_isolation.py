"""What one API key's requests leave behind is of no use to another key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.stack.processes import Stack, Tier

LONG = "The quick brown fox jumps over the lazy dog, again and again. " * 12
MODEL = "trireme-demo"
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": LONG}], "max_tokens": 1},
    "/v1/completions": {"prompt": LONG, "max_tokens": 1},
    "/v1/responses": {"input": LONG, "max_output_tokens": 16},
    "/v1/messages": {"messages": [{"role": "user", "content": LONG}], "max_tokens": 1},
}


@pytest.fixture(scope="module")
def locked(real_stack: Stack) -> Iterator[Tier]:
    gateway = real_stack.add_gateway("--api-keys", "alice,bob")
    gateway.wait_ready()
    yield gateway
    gateway.stop()


def cached(gateway: Tier, key: str, path: str, **fields: Any) -> int:
    """Tokens of the prompt that the worker had computed before, as the usage tells."""
    body = {"model": MODEL, **PATHS[path], **fields}
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.post(gateway.url + path, json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    if "cache_read_input_tokens" in usage:
        return int(usage["cache_read_input_tokens"])
    details = usage.get("prompt_tokens_details") or usage["input_tokens_details"]
    return int(details["cached_tokens"])


@pytest.mark.parametrize("path", PATHS)
def test_another_key_finds_nothing_in_the_cache(locked: Tier, path: str) -> None:
    # another beginning for each route, since they share the engine
    first = "user" if path != "/v1/completions" else "prompt"
    own = f"{path} {first}: {LONG}"
    fields: dict[str, Any] = {"prompt": own} if "prompt" in PATHS[path] else {}
    if "input" in PATHS[path]:
        fields = {"input": own}
    elif "messages" in PATHS[path]:
        fields = {"messages": [{"role": "user", "content": own}]}
    assert cached(locked, "alice", path, **fields) < 64
    warm = cached(locked, "alice", path, **fields)
    assert warm > 100, "her own request is found"
    cold = cached(locked, "bob", path, **fields)
    assert cold == 0
    assert cached(locked, "bob", path, **fields) == warm, "then his own is"


def test_a_client_cannot_choose_the_salt(locked: Tier) -> None:
    for name in ("cache_salt", "priority_salt", "gateway", "instance_id"):
        body = {"model": MODEL, **PATHS["/v1/chat/completions"], name: "x"}
        headers = {"authorization": "Bearer bob"}
        answer = httpx.post(
            f"{locked.url}/v1/chat/completions", json=body, headers=headers, timeout=30
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
