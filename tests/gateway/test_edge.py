"""What every request passes: keys, request ids, CORS, body limits, errors without a route."""

from __future__ import annotations

import asyncio
import re
from io import BytesIO
from typing import Any

import aiohttp
import pytest
from pydantic import BaseModel

from gateway.app import create_app
from gateway.config import GatewaySettings
from gateway.edge import request_id_of
from gateway.openapi import DESCRIBED
from tests.gateway.fakes import MODEL, FakeWorker, stack, until

BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"
KEY = {"Authorization": "Bearer secret"}
GUARDED = [
    ("POST", CHAT),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/resp_1"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/engines/demo/embeddings"),
    ("POST", "/api/v1/token_check"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/score"),
    ("POST", "/v1/score"),
    ("POST", "/rerank"),
    ("POST", "/v1/rerank"),
    ("POST", "/v2/rerank"),
    ("POST", "/api/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/demo"),
    ("GET", "/v1/capabilities"),
    ("GET", "/docs"),
    ("GET", "/redoc"),
    ("GET", "/openapi.json"),
    ("GET", "/nowhere"),
    ("GET", "/health/"),
    ("GET", "//health"),
    ("OPTIONS", CHAT),
]


@pytest.mark.parametrize("given", [None, "Basic x", "Bearer ", "Bearer", "secret"])
async def test_without_a_key_nothing_but_health_is_open(
    http: aiohttp.ClientSession, given: str | None
) -> None:
    headers = {} if given is None else {"Authorization": given}
    async with stack(FakeWorker(), api_keys=("secret", "other")) as s:
        for method, path in GUARDED:
            async with http.request(method, s.url + path, headers=headers) as answer:
                assert answer.status == 401, path
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert answer.headers["X-Request-Id"]
                error = (await answer.json())["error"]
                assert (error["type"], error["param"], error["code"]) == (
                    "invalid_request_error",
                    None,
                    None,
                )
        for path in ("/health", "/healthz", "/livez", "/readyz", "/ping", "/version", "/metrics"):
            async with http.get(s.url + path, headers=headers) as answer:
                assert answer.status == 200, path


async def test_a_wrong_key_is_named_but_not_echoed() -> None:
    async with stack(FakeWorker(), api_keys=("secret",)) as s:
        for key in (b"wrong", b"secre", b"secretx", b"\x80\xff\xfe", b"k" * 30_000):
            status, head, body = await raw(s.url, b"Authorization: Bearer " + key)
            assert status == 401
            assert b"www-authenticate: bearer" in head.lower()
            assert b'"code":"invalid_api_key"' in body
            assert key not in body
            assert b'"error_code":40102' in body


async def test_a_path_is_open_as_it_is_written_only() -> None:
    async with stack(FakeWorker(), api_keys=("secret",)) as s:
        for path, status in (
            (b"/health", 200),
            (b"/health?x=1", 200),
            (b"/v1/../health", 401),
            (b"/health/../v1/models", 401),
            (b"/%76%31/models", 401),
            (b"http://x/v1/models", 401),
        ):
            assert (await raw(s.url, b"X-A: b", path))[0] == status, path


@pytest.mark.parametrize(
    "header", [b"X-Big: " + b"x" * 70_000, b"Host: a/b?#", b"Host: a b", b"Host: a@b"]
)
async def test_headers_that_are_too_big_or_no_host_are_refused(header: bytes) -> None:
    async with stack(FakeWorker()) as s:
        status, head, body = await raw(s.url, header, host=b"" if b"Host" in header else b"x")
        assert status == 400
        assert b"connection: close" in head.lower()
        assert b'"invalid_request_error"' in body


async def test_a_key_of_100_kb_is_a_wrong_key() -> None:
    async with stack(FakeWorker(), api_keys=("secret",)) as s:
        status, _, body = await raw(s.url, b"Authorization: Bearer " + b"k" * 100_000)
        assert status == 401
        assert b"invalid_api_key" in body


async def test_a_body_with_two_lengths_is_refused() -> None:
    async with stack(FakeWorker()) as s:
        both = b"Content-Length: 3\r\nTransfer-Encoding: chunked"
        assert (await raw(s.url, both))[0] == 400


async def test_the_openapi_document_describes_bodies(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker()) as s, http.get(s.url + "/openapi.json") as answer:
        document = await answer.json()
    schemas = document["components"]["schemas"]
    refs = set(re.findall(r'"#/components/schemas/(\w+)"', str(document).replace("'", '"')))
    assert refs <= schemas.keys()
    assert {"ChatCompletionRequest", "CompletionRequest", "ChatCompletionResponse"} <= refs
    assert "#/$defs" not in str(document)


@pytest.mark.parametrize("model", [*DESCRIBED.bodies, *DESCRIBED.answers, DESCRIBED.failure])
def test_no_other_schema_of_the_document_takes_a_models_name(model: type[BaseModel]) -> None:
    shown = create_app(GatewaySettings()).openapi()["components"]["schemas"]
    own = model.model_json_schema(ref_template="#/components/schemas/{model}")
    for name, schema in {**own.pop("$defs", {}), model.__name__: own}.items():
        assert shown[name].get("properties", {}).keys() == schema.get("properties", {}).keys()


def test_every_field_and_route_of_the_document_is_described() -> None:
    document = create_app(GatewaySettings()).openapi()
    bare = [
        f"{name}.{field}"
        for name, schema in document["components"]["schemas"].items()
        for field, found in schema.get("properties", {}).items()
        if not found.get("description")
    ]
    assert bare == [], "write a text in three quotes below the field"
    assert all(
        one["responses"]["200"] for path in document["paths"].values() for one in path.values()
    )


async def raw(
    url: str, header: bytes, path: bytes = b"/v1/models", host: bytes = b"x"
) -> tuple[int, bytes, bytes]:
    """GET with a header of any bytes: (status, head, body)."""
    name, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    writer.write(b"GET " + path + b" HTTP/1.1\r\nConnection: close\r\n")
    writer.write(b"Host: " + host + b"\r\n" if host else b"")
    writer.write(header + b"\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(answer.split()[1]), head, body


async def test_a_right_key_opens_every_route(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker(), api_keys=("secret", "other")) as s:
        for key in ("secret", "other"):
            headers = {"Authorization": f"bearer {key}"}
            async with http.post(s.url + CHAT, json=BODY, headers=headers) as answer:
                assert answer.status == 200
        async with http.get(s.url + "/docs", headers=KEY) as answer:
            assert answer.status == 200


async def test_unknown_urls_and_methods(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker()) as s:
        async with http.post(s.url + "/v1/nope", json={}) as answer:
            assert answer.status == 404
            assert (await answer.json())["error"] == {
                "message": "Invalid URL (POST /v1/nope)",
                "type": "invalid_request_error",
                "param": None,
                "code": "unknown_url",
            }
        async with http.get(s.url + CHAT) as answer:
            assert answer.status == 405
            assert answer.headers["Allow"] == "POST"
            assert (await answer.json())["error"]["code"] == "method_not_supported"
        async with http.post(s.url + "/" + "x" * 3000) as answer:
            assert len((await answer.json())["error"]["message"]) < 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
async def test_other_content_types_are_refused(
    http: aiohttp.ClientSession, content_type: str
) -> None:
    async with stack(FakeWorker()) as s:
        options: dict[str, Any] = {"headers": {"Content-Type": content_type}}
        if not content_type:
            options = {"skip_auto_headers": ["Content-Type"]}
        async with http.post(s.url + CHAT, data=b"{}", **options) as answer:
            assert answer.status == 415
            assert (await answer.json())["error"]["code"] == "unsupported_content_type"


async def test_a_charset_in_the_content_type_is_fine(http: aiohttp.ClientSession) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    data = aiohttp.JsonPayload(BODY).decode().encode()
    async with (
        stack(FakeWorker()) as s,
        http.post(s.url + CHAT, data=data, headers=headers) as answer,
    ):
        assert answer.status == 200


def padded(size: int) -> bytes:
    """A good body of that many bytes."""
    data = aiohttp.JsonPayload(BODY).decode().encode()
    return data + b" " * (size - len(data))


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_body_limit(http: aiohttp.ClientSession, chunked: bool) -> None:
    limit, headers = 4 * 1024 * 1024, {"Content-Type": "application/json"}

    async def pieces(data: bytes) -> Any:
        for start in range(0, len(data), 65_536):
            yield data[start : start + 65_536]

    async with stack(FakeWorker()) as s:
        for size, status in ((limit, 200), (limit + 1, 413), (3 * limit, 413)):
            data: Any = pieces(padded(size)) if chunked else BytesIO(padded(size))
            async with http.post(s.url + CHAT, data=data, headers=headers) as answer:
                assert answer.status == status
                if status == 413:
                    assert answer.headers["Connection"] == "close"
                    assert (await answer.json())["error"]["code"] == "request_too_large"
        assert len(s.workers[0].requests) == 1


async def test_a_declared_length_alone_is_refused_before_the_body() -> None:
    async with stack(FakeWorker()) as s:
        host, port = s.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
        )
        answer = await asyncio.wait_for(reader.read(), 2)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 5000000\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + b" " * 0x100000 + b"\r\n") * 5,
    ],
    ids=["length", "chunks"],
)
async def test_a_body_that_is_too_large_is_answered_before_its_end(body: bytes) -> None:
    async with stack(FakeWorker()) as s:
        host, port = s.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + body
        )
        async with asyncio.timeout(1):
            head = await reader.readuntil(b"\r\n\r\n")
            answer = await reader.readuntil(b"}")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"request_too_large" in answer
        writer.close()


async def test_the_request_id_is_taken_or_made(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker(), api_keys=("secret",)) as s:
        cases = (("GET", "/health"), ("GET", "/v1/models"), ("POST", "/x"))
        for method, path in cases:
            async with http.request(
                method, s.url + path, headers={"x-request-id": "mine-1"}
            ) as answer:
                assert answer.headers.getall("X-Request-Id") == ["mine-1"]
            async with http.request(method, s.url + path) as answer:
                assert answer.headers["X-Request-Id"].startswith("req-")


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", "a\nb", '"'])
def test_an_odd_request_id_is_replaced(given: str) -> None:
    assert request_id_of(given).startswith("req-")
    assert request_id_of("a.B:9/_=@+-") == "a.B:9/_=@+-"


async def test_a_preflight_needs_no_key(http: aiohttp.ClientSession) -> None:
    preflight = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    async with stack(FakeWorker(), api_keys=("secret",)) as s:
        async with http.options(s.url + CHAT, headers=preflight) as answer:
            assert answer.status == 200
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "authorization" in answer.headers["Access-Control-Allow-Headers"].lower()
        async with http.get(
            s.url + "/v1/models", headers={"Origin": "https://a.example"}
        ) as answer:
            assert answer.status == 401
            assert answer.headers["Access-Control-Allow-Origin"] == "*", "a page can read the error"
            assert "x-request-id" in answer.headers["Access-Control-Expose-Headers"]


async def test_only_named_origins_get_credentials(http: aiohttp.ClientSession) -> None:
    options = {"allow_credentials": True, "allowed_origins": ("https://a.example",)}
    async with stack(FakeWorker(), **options) as s:
        for origin, allowed in (("https://a.example", True), ("https://b.example", False)):
            async with http.get(s.url + "/v1/models", headers={"Origin": origin}) as answer:
                shown = answer.headers.get("Access-Control-Allow-Origin")
                assert (shown == origin) is allowed


async def test_a_fault_of_ours_is_a_500_with_a_body(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker()) as s:
        s.app.state.gateway.dispatcher._policy = lambda query, rng: 1 / 0
        async with http.post(s.url + CHAT, json=BODY) as answer:
            assert answer.status == 500
            assert answer.headers["X-Request-Id"]
            body = await answer.json()
            assert (body["error"]["type"], body["error_code"]) == ("server_error", 50001)
            assert "ZeroDivision" not in str(body)


@pytest.mark.parametrize(
    ("fields", "status", "param", "code", "number"),
    [
        ({"model": "nope"}, 404, "model", "model_not_found", 40301),
        ({"model": "../../etc/passwd"}, 404, "model", "model_not_found", 40301),
        ({"model": "x" * 10_000}, 404, "model", "model_not_found", 40301),
        ({"max_tokens": 2049}, 400, "max_tokens", "invalid_value", 40302),
        ({"temperature": 3}, 400, "temperature", "decimal_above_max_value", 40302),
        ({"foo": 1}, 400, "foo", "unknown_parameter", 40001),
        ({"messages": "hi"}, 400, "messages", "invalid_type", 40001),
    ],
)
async def test_an_error_body_has_openais_form_and_the_seeds_number(
    http: aiohttp.ClientSession,
    fields: dict[str, Any],
    status: int,
    param: str,
    code: str,
    number: int,
) -> None:
    async with (
        stack(FakeWorker()) as s,
        http.post(s.url + CHAT, json=BODY | fields) as answer,
    ):
        assert answer.status == status
        assert answer.headers["Content-Type"] == "application/json"
        body = await answer.json()
        assert body["error_code"] == number
        assert (body["error"]["param"], body["error"]["code"]) == (param, code)
        assert 0 < len(body["error"]["message"]) < 400
        assert s.workers[0].requests == []


async def test_a_bad_time_limit_is_refused(http: aiohttp.ClientSession) -> None:
    headers = {"x-request-timeout-ms": "soon"}
    async with (
        stack(FakeWorker()) as s,
        http.post(s.url + CHAT, json=BODY, headers=headers) as answer,
    ):
        assert answer.status == 400


async def test_a_lenient_gateway_ignores_harmless_fields(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker(), lenient=True) as s:
        async with http.post(s.url + CHAT, json=BODY | {"foo": 1}) as answer:
            assert answer.status == 200
        async with http.post(s.url + CHAT, json=BODY | {"guided_regex": "a"}) as answer:
            assert answer.status == 400


async def test_before_any_controller_answered_a_model_is_503_not_404(
    http: aiohttp.ClientSession,
) -> None:
    async with stack(FakeWorker()) as s:
        from gateway.fleet_view import FleetView

        dispatcher = s.app.state.gateway.dispatcher
        dispatcher._view = FleetView(())
        async with http.post(s.url + CHAT, json=BODY) as answer:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "no_worker"
        await until(lambda: dispatcher.in_flight.count() == 0)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/messages"),
        ("POST", CHAT),
    ],
)
async def test_a_fault_of_a_route_is_answered_in_the_routes_form_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str, path: str
) -> None:
    async with stack(FakeWorker()) as s, aiohttp.ClientSession() as http:
        monkeypatch.setattr(s.app.state.gateway.view, "snapshot", None)
        asked = BODY if path.endswith("count_tokens") else {**BODY, "max_tokens": 1}
        origin = {"Origin": "http://a"}
        async with http.request(method, s.url + path, headers=origin, json=asked) as answer:
            assert answer.status == 500
            assert answer.headers["Access-Control-Allow-Origin"]
            body = await answer.json()
        monkeypatch.undo()
    kind = "api_error" if "messages" in path else "server_error"
    assert body["error"]["type"] == kind
    assert "NoneType" not in body["error"]["message"]
    [record] = [one for one in caplog.records if one.exc_info]
    assert record.getMessage() == "request failed"
