"""`trireme why` against a real gateway and its scripted worker, in the same process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import aiohttp

from protocol.errors import TriremeError
from tests.gateway.fakes import MODEL, FakeWorker, Stack, stack

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


async def why(s: Stack, env: dict[str, str], *args: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trireme.cli", "why", "--gateway-address", s.url, *args),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_each_attempt_is_a_table(command_environment: dict[str, str]) -> None:
    refusing = FakeWorker("aaaaaaaa-1", refuse=TriremeError("draining", "no"))
    async with stack(refusing, FakeWorker("bbbbbbbb-2")) as s, aiohttp.ClientSession() as http:
        attempts = ""
        while attempts != "2":
            async with http.post(
                s.url + "/v1/chat/completions", json=CHAT, headers={"x-request-id": "a/b"}
            ) as answer:
                attempts = answer.headers["x-trireme-attempts"]
        code, shown, _ = await why(s, command_environment, "a/b")
        assert code == 0
        assert "attempt 1 at" in shown
        assert ": draining" in shown
        assert "→ aaaaaaaa " in shown
        assert "attempt 2 at" in shown
        assert "→ bbbbbbbb " in shown
        assert "tried: aaaaaaaa" in shown
        assert "0 thought cached, 3 were" in shown
        assert "; a tie of 2 at the least cost, drawn" in shown
        assert "; the only worker that could be chosen" in shown
        assert "\nabout 5 prompt tokens, 0 thought cached\n" in shown
        code, shown, _ = await why(s, command_environment, "a/b", "--json")
        assert [one["outcome"] for one in json.loads(shown)["attempts"]] == ["draining", "done"]


async def test_an_unknown_request_and_a_missing_token_are_one_line(
    command_environment: dict[str, str],
) -> None:
    async with stack(FakeWorker()) as s:
        code, shown, told = await why(s, command_environment, "nope")
        assert (code, shown) == (1, "")
        assert "No request nope among the last 1000" in told
        assert "Ask the one that answered it." in told
    async with stack(FakeWorker(token="t"), cluster_token="t") as s:
        code, _, told = await why(s, command_environment, "nope")
        assert code == 1
        assert "cluster token" in told
        assert (await why(s, command_environment, "nope", "--cluster-token", "t"))[0] == 1


async def test_of_several_gateways_the_one_that_answered_is_found(
    command_environment: dict[str, str],
) -> None:
    async with stack(FakeWorker()) as other, stack(FakeWorker()) as s:
        async with (
            aiohttp.ClientSession() as http,
            http.post(
                s.url + "/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine"}
            ) as answer,
        ):
            assert answer.status == 200
        addresses = f"http://127.0.0.1:1,{other.url},{s.url}"
        code, shown, told = await why(
            s, command_environment, "mine", "--gateway-address", addresses
        )
        assert (code, told) == (0, "")
        assert "; the only worker that could be chosen" in shown
