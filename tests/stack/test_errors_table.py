"""Every bad input of the project's list, over a socket to real processes: its exact answer, and 200
for what is next to it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.stack.error_rows import KEY, ROWS, SIM, Bad, Call
from tests.stack.processes import running

MAX_ANSWER_BYTES = 2048
MAX_ECHO_CHARS = 100


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A gateway's that asks for a key; behind it are a simulated and a real model."""
    with running(tmp_path_factory.mktemp("errors")) as stack:
        stack.add_worker("--engine", "sim", "--model-names", SIM)
        stack.add_worker("--dtype", "float32")
        guarded = stack.add_gateway("--api-keys", KEY)
        stack.wait_serving()
        guarded.wait_ready()
        yield guarded.port


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def sent(port: int, call: Call) -> Answer:
    """What comes back until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(call.wire)
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Answer(int(first.split()[1]), headers, body)


def ids(kind: str) -> list[Any]:
    """Calls of that kind with their row and place as the name of the test."""
    return [
        pytest.param(one, id=f"row {row.number}, {place}")
        for row in ROWS
        for place, one in enumerate(getattr(row, kind), 1)
    ]


def test_the_list_is_whole() -> None:
    assert [row.number for row in ROWS] == list(range(1, 41))
    assert all(row.good for row in ROWS)


@pytest.mark.parametrize("bad", ids("bad"))
def test_a_bad_input_has_its_exact_answer(port: int, bad: Bad) -> None:
    answer = sent(port, bad.call)
    assert answer.status == bad.status, answer.body[:300]
    assert len(answer.body) < MAX_ANSWER_BYTES
    if not bad.json:
        return
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req-")
    found = json.loads(answer.body)
    error = found.pop("error")
    assert found.keys() == {"error_code"}
    message = error.pop("message")
    assert error == {"type": "invalid_request_error", "param": bad.param, "code": bad.code}
    assert message.startswith(bad.says)
    assert 0 < len(message) <= 1024
    assert not echoes(message, bad.call.wire)
    name, _, value = bad.header.lower().partition(": ")
    assert not name or answer.headers[name] == value


def echoes(message: str, wire: bytes) -> bool:
    """Whether the message repeats too much of what was sent."""
    width = MAX_ECHO_CHARS + 1
    windows = (message[start : start + width] for start in range(len(message) - width + 1))
    return any(window.encode() in wire for window in windows)


@pytest.mark.parametrize("call", ids("good"))
def test_its_neighbour_is_answered(port: int, call: Call) -> None:
    answer = sent(port, call)
    assert answer.status == 200, answer.body[:300]


def test_greedy_choices_are_equal(port: int) -> None:
    """Row 28."""
    (call,) = next(row.good for row in ROWS if row.number == 28)
    one, two = json.loads(sent(port, call).body)["choices"]
    assert one["message"] == two["message"]


def test_null_is_the_default(port: int) -> None:
    """Row 25: a null seed is no seed, a null stream no stream."""
    for call in next(row.good for row in ROWS if row.number == 25):
        assert json.loads(sent(port, call).body)["choices"]
