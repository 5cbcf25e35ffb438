"""The few words that a log has for why a peer could not be asked: of real failures."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

import aiohttp
import httpx
import pytest
import trustme
from aiohttp import web

from trireme.service.reasons import AGAIN_S, Trouble, reason

Failure: TypeAlias = Callable[[str], Awaitable[BaseException]]


async def httpx_failure(url: str) -> BaseException:
    async with httpx.AsyncClient(trust_env=False, timeout=0.2) as client:
        with pytest.raises(httpx.HTTPError) as caught:
            await client.get(url)
    return caught.value


async def aiohttp_failure(url: str) -> BaseException:
    patience = aiohttp.ClientTimeout(total=0.2)
    async with aiohttp.ClientSession(timeout=patience) as session:
        with pytest.raises((aiohttp.ClientError, TimeoutError)) as caught:
            await session.get(url)
    return caught.value


CLIENTS = pytest.mark.parametrize("failure", [httpx_failure, aiohttp_failure])


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of somebody who takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@CLIENTS
async def test_nobody_listens(failure: Failure) -> None:
    assert reason(await failure("http://127.0.0.1:9/")) == "connection refused"
    assert reason(await failure("http://localhost:9/")) == "connection refused"


@CLIENTS
async def test_no_answer_comes(failure: Failure, silent: str) -> None:
    assert reason(await failure(f"http://{silent}/")) == "no answer in time"


@CLIENTS
async def test_an_own_certificate(failure: Failure) -> None:
    async def hello(_request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/", hello)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        port = runner.addresses[0][1]
        assert (
            reason(await failure(f"https://127.0.0.1:{port}/")) == "its certificate is not trusted"
        )
    finally:
        await runner.cleanup()


def test_answers_and_what_is_not_known() -> None:
    assert reason(OSError(), 401) == "the controller wants the cluster token"
    assert reason(OSError(), 503) == "it answered with status 503"
    assert reason(ValueError("secret")) == "its answer cannot be read"
    assert reason(KeyError("secret")) == "KeyError"


def test_a_trouble_is_told_when_it_changes_and_once_a_minute() -> None:
    trouble = Trouble()
    assert trouble.is_news("a", 0.0)
    assert not trouble.is_news("a", AGAIN_S - 1)
    assert trouble.is_news("a", AGAIN_S)
    assert trouble.is_news("b", AGAIN_S + 1)
    trouble.is_over()
    assert trouble.is_news("b", AGAIN_S + 2)
