"""What every test of the gateway has; the peers are in fakes.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from blockbuster import blockbuster_ctx


@pytest.fixture(autouse=True)
def blocking_the_loop_fails() -> Iterator[None]:
    """A call of the gateway's that blocks the event loop is an error."""
    with blockbuster_ctx("gateway"):
        yield


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the test's own, closed at its end."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session
