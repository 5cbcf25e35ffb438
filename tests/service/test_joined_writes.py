"""What a server writes in one turn of the event loop leaves at once, in order, and whole."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from trireme.service.joined_writes import MOST_HELD_BYTES, JoinedWrites


class Kept:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> str:
        return f"the {name}"


@pytest.fixture
async def pair() -> tuple[Any, Kept]:
    kept = Kept()
    return JoinedWrites(kept, asyncio.get_running_loop()), kept  # type: ignore[arg-type]


async def test_writes_of_one_turn_are_one(pair: tuple[Any, Kept]) -> None:
    joined, kept = pair
    joined.write(b"head ")
    joined.write(b"body")
    assert (kept.sent, joined.get_write_buffer_size()) == ([], 9)
    await asyncio.sleep(0)
    assert (kept.sent, joined.get_write_buffer_size()) == ([b"head body"], 0)
    joined.write(b"next")
    await asyncio.sleep(0)
    assert kept.sent == [b"head body", b"next"]


async def test_what_is_large_does_not_wait(pair: tuple[Any, Kept]) -> None:
    joined, kept = pair
    large = bytes(MOST_HELD_BYTES)
    joined.write(b"head ")
    joined.write(large)
    assert kept.sent == [b"head " + large]
    joined.write(b"tail")
    await asyncio.sleep(0)
    assert kept.sent[1:] == [b"tail"], "and is not sent again"


async def test_a_close_sends_what_is_held_first(pair: tuple[Any, Kept]) -> None:
    joined, kept = pair
    joined.write(b"all")
    joined.close()
    assert (kept.sent, kept.closed) == ([b"all"], True)
    joined.write(b"too late")
    await asyncio.sleep(0)
    assert kept.sent == [b"all"]


async def test_everything_else_is_the_transport_s_own(pair: tuple[Any, Kept]) -> None:
    joined, _ = pair
    assert joined.get_extra_info("peername") == "the peername"
    assert joined.is_closing() is False
