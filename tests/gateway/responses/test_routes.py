"""/v1/responses over sockets: what is stored, for whom, and how streams end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from protocol.errors import TriremeError
from tests.gateway.fakes import MODEL, FakeWorker, stack

TEXT = "Hello there, how are you?"


@asynccontextmanager
async def clients(
    worker: FakeWorker | None = None, **settings: Any
) -> AsyncIterator[tuple[openai.AsyncOpenAI, openai.AsyncOpenAI]]:
    """Ann and Bob, who have keys of their own."""
    async with stack(worker or FakeWorker(), api_keys=("ann", "bob"), **settings) as s:
        made = [
            openai.AsyncOpenAI(base_url=f"{s.url}/v1", api_key=key, max_retries=0)
            for key in ("ann", "bob")
        ]
        async with made[0], made[1]:
            yield made[0], made[1]


async def ask(client: openai.AsyncOpenAI, given: Any = "hi", **fields: Any) -> Any:
    return await client.responses.create(model=MODEL, input=given, **fields)


async def test_a_conversation_goes_on_over_several_responses() -> None:
    worker = FakeWorker()
    async with clients(worker) as (ann, _):
        first = await ask(ann, "one", instructions="Be short.")
        second = await ask(ann, "two", previous_response_id=first.id)
        await ask(ann, "three", previous_response_id=second.id, instructions="Be long.")
    said = {"role": "assistant", "content": TEXT}
    assert worker.requests[-1].messages == [
        {"role": "system", "content": "Be long."},
        {"role": "user", "content": "one"},
        said,
        {"role": "user", "content": "two"},
        said,
        {"role": "user", "content": "three"},
    ]


async def test_a_streamed_response_is_stored_as_well() -> None:
    async with clients() as (ann, _):
        async with ann.responses.stream(model=MODEL, input="hi") as stream:
            final = await stream.get_final_response()
        assert final.output_text == TEXT
        kept = await ann.responses.retrieve(final.id)
        assert kept.output_text == TEXT
        assert (await ask(ann, previous_response_id=final.id)).previous_response_id == final.id


async def test_what_is_not_to_be_stored_is_not() -> None:
    async with clients() as (ann, _):
        answer = await ask(ann, store=False)
        assert answer.store is False
        with pytest.raises(openai.NotFoundError, match=answer.id):
            await ann.responses.retrieve(answer.id)


async def test_a_tenant_does_not_find_anothers_responses() -> None:
    async with clients() as (ann, bob):
        answer = await ask(ann)
        for call in (bob.responses.retrieve, bob.responses.delete, bob.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                await call(answer.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(bob, previous_response_id=answer.id)
        assert caught.value.code == "previous_response_not_found"
        with pytest.raises(openai.NotFoundError):
            await ask(bob, [{"type": "item_reference", "id": answer.output[0].id}])
        assert (await ann.responses.retrieve(answer.id)).id == answer.id


async def test_an_item_is_referred_to_by_its_id() -> None:
    worker = FakeWorker()
    async with clients(worker) as (ann, _):
        answer = await ask(ann)
        reference = {"type": "item_reference", "id": answer.output[0].id}
        await ask(ann, [{"role": "user", "content": "a"}, reference])
    assert (worker.requests[-1].messages or [])[1] == {"role": "assistant", "content": TEXT}


async def test_input_items_come_in_pages() -> None:
    async with clients() as (ann, _):
        given = [{"role": "user", "content": text} for text in "abcde"]
        answer = await ask(ann, given)
        pages = ann.responses.input_items.list(answer.id, limit=2, order="asc")
        shown = [item async for item in pages]
        assert [item.content[0].text for item in shown] == list("abcde")
        newest = await ann.responses.input_items.list(answer.id, limit=1)
        assert newest.data[0].id == shown[-1].id
        for wrong in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "msg_0"}):
            with pytest.raises(openai.BadRequestError) as caught:
                await ann.responses.input_items.list(answer.id, **wrong)
            assert caught.value.param == next(iter(wrong))


async def test_a_stored_response_is_not_streamed_again() -> None:
    async with clients() as (ann, _):
        answer = await ask(ann)
        with pytest.raises(openai.BadRequestError) as caught:
            await ann.responses.retrieve(answer.id, stream=True)
        assert caught.value.param == "stream"


async def test_the_store_is_bounded() -> None:
    async with clients(stored_responses=1) as (ann, _):
        first, second = await ask(ann), await ask(ann)
        with pytest.raises(openai.NotFoundError):
            await ann.responses.retrieve(first.id)
        assert (await ann.responses.retrieve(second.id)).id == second.id


async def test_a_worker_lost_in_between_ends_the_stream_with_a_failure() -> None:
    async with clients(FakeWorker(die_after=3)) as (ann, _):
        events = [event async for event in await ask(ann, stream=True)]
        told, failed = events[-2:]
        assert (told.type, told.code) == ("error", "worker_lost")
        assert (failed.type, failed.response.status) == ("response.failed", "failed")
        assert failed.response.error.code == "server_error"
        with pytest.raises(openai.NotFoundError):
            await ann.responses.retrieve(failed.response.id)


async def test_a_workers_refusal_names_the_field_of_this_api() -> None:
    refusal = TriremeError("context_length_exceeded", "Too long.", param="messages")
    async with clients(FakeWorker(refuse=refusal)) as (ann, _):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                await ask(ann, stream=stream)
            assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
