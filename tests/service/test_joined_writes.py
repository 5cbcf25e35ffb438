"""An answer's head leaves with what follows it, everything else at once, in order, and whole."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from trireme.service.joined_writes import JoinedWrites

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Kept:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent.append(data)

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.write(b"".join(pieces))

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


async def test_a_head_leaves_with_what_follows_it(pair: tuple[Any, Kept]) -> None:
    joined, kept = pair
    joined.write(HEAD)
    assert (kept.sent, joined.get_write_buffer_size()) == ([], len(HEAD))
    joined.write(b"body")
    assert (kept.sent, joined.get_write_buffer_size()) == ([HEAD + b"body"], 0)
    await asyncio.sleep(0)
    assert kept.sent == [HEAD + b"body"], "and is not sent again"


async def test_a_head_waits_for_one_turn_only(pair: tuple[Any, Kept]) -> None:
    joined, kept = pair
    joined.write(HEAD)
    await asyncio.sleep(0)
    assert (kept.sent, joined.get_write_buffer_size()) == ([HEAD], 0)
    joined.write(b"body")
    assert kept.sent == [HEAD, b"body"]


async def test_what_is_no_head_does_not_wait(pair: tuple[Any, Kept]) -> None:
    joined, kept = pair
    joined.write(b"a token")
    joined.write(b"the next")
    assert kept.sent == [b"a token", b"the next"]


async def test_a_close_sends_what_is_held_first(pair: tuple[Any, Kept]) -> None:
    joined, kept = pair
    joined.write(HEAD)
    joined.close()
    assert (kept.sent, kept.closed) == ([HEAD], True)
    joined.write(b"too late")
    joined.write(HEAD)
    joined.write(b"too late")
    await asyncio.sleep(0)
    assert kept.sent == [HEAD]


async def test_everything_else_is_the_transport_s_own(pair: tuple[Any, Kept]) -> None:
    joined, _ = pair
    assert joined.get_extra_info("peername") == "the peername"
    assert joined.is_closing() is False
