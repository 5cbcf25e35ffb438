"""Bad inputs row by row, each with the exact answer and with neighbours that are right.

The rows keep the numbers under which the project lists them. Calls are whole HTTP requests, so that
anything can be wrong with them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

SIM, DEMO = "simulated-model", "trireme-demo"
KEY = "right-key"
MIB = 2**20
MAX_BODY = 4 * MIB

TYPE, VALUE, MISSING = "invalid_type", "invalid_value", "missing_required_parameter"
UNKNOWN, UNSUPPORTED, EMPTY = "unknown_parameter", "unsupported_parameter", "empty_array"
LONG, LONG_TEXT = "array_above_max_length", "string_above_max_length"
INT_LOW, INT_HIGH = "integer_below_min_value", "integer_above_max_value"
LOW, HIGH = "decimal_below_min_value", "decimal_above_max_value"
ABSENT = object()


@dataclass(frozen=True)
class Call:
    """One HTTP request; the headers stand in for all that are usually sent, or add to them."""

    body: bytes = b""
    path: bytes = b"/v1/chat/completions"
    method: bytes = b"POST"
    host: bytes = b"Host: localhost"
    content_type: bytes = b"Content-Type: application/json"
    key: bytes = b"Authorization: Bearer " + KEY.encode()
    length: bytes | None = None

    @property
    def wire(self) -> bytes:
        length = b"Content-Length: %d" % len(self.body) if self.length is None else self.length
        lines = [self.method + b" " + self.path + b" HTTP/1.1", b"Connection: close"]
        lines += [one for one in (self.host, self.content_type, self.key, length) if one]
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


@dataclass(frozen=True)
class Bad:
    """A call that is refused, and how."""

    call: Call
    param: str | None
    code: str | None
    status: int = 400
    says: str = ""
    header: str = ""
    json: bool = True


@dataclass(frozen=True)
class Row:
    number: int
    bad: list[Bad]
    good: list[Call] = field(default_factory=list)


def body(base: dict[str, Any], fields: dict[str, Any]) -> bytes:
    kept = {name: value for name, value in (base | fields).items() if value is not ABSENT}
    return json.dumps(kept, ensure_ascii=False).encode()


HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> Call:
    return Call(body({"model": SIM, "messages": HELLO, "max_tokens": 1}, fields))


def text(**fields: Any) -> Call:
    made = body({"model": SIM, "prompt": "Hello", "max_tokens": 1}, fields)
    return Call(made, path=b"/v1/completions")


def embed(**fields: Any) -> Call:
    return Call(body({"model": SIM, "input": "Hello"}, fields), path=b"/v1/embeddings")


def turn(**fields: Any) -> Call:
    """A chat of one message with these fields alone."""
    return chat(messages=[fields])


def user(content: Any) -> Call:
    return turn(role="user", content=content)


def schema(value: Any) -> Call:
    named = {"name": "x", "schema": value}
    return chat(model=DEMO, response_format={"type": "json_schema", "json_schema": named})


def every(*calls: Call, param: str | None, code: str | None, status: int = 400) -> list[Bad]:
    return [Bad(call, param, code, status) for call in calls]


def deep_schema(levels: int) -> Call:
    """Deeper than the standard library's encoder goes, perhaps."""
    nested = b'{"type":"array","items":' * levels + b"{}" + b"}" * levels
    return Call(schema({"HERE": 1}).body.replace(b'{"HERE": 1}', nested))


def chunked(data: bytes) -> bytes:
    pieces = [data[start : start + MIB] for start in range(0, len(data), MIB)]
    return b"".join(b"%x\r\n" % len(one) + one + b"\r\n" for one in pieces) + b"0\r\n\r\n"


FUNCTION = {"type": "function", "function": {"name": "f"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}
]}  # fmt: skip
RESULT = {"role": "tool", "tool_call_id": "c", "content": "7"}
LAST_PART = "messages[0].content[0].type"
PLAIN = chat()
PADDED = PLAIN.body + b" " * (MAX_BODY - len(PLAIN.body))
IN_CHUNKS = b"Transfer-Encoding: chunked"
MODELS = Call(path=b"/v1/models", method=b"GET", content_type=b"", length=b"")
UNPARSABLE = "We could not parse the JSON body of your request."

ROWS = [
    Row(
        1,
        [
            Bad(Call(PLAIN.body, key=key), None, None, 401, header="www-authenticate: Bearer")
            for key in (b"", b"Authorization: Basic x", b"Authorization: Bearer ")
        ],
        [PLAIN],
    ),
    Row(
        2,
        [
            Bad(Call(PLAIN.body, key=b"Authorization: Bearer " + key), None, "invalid_api_key", 401)
            for key in (b"wrong", b"\x80\xfe\xff", b"k" * 100_000)
        ],
        [PLAIN],
    ),
    Row(
        3,
        [Bad(Call(b"{}", b"/v1/nope"), None, "unknown_url", 404, "Invalid URL (POST /v1/nope)")],
        [MODELS],
    ),
    Row(
        4,
        [
            Bad(
                Call(method=b"GET", content_type=b"", length=b""),
                None,
                "method_not_supported",
                405,
                header="allow: POST",
            )
        ],
        [PLAIN],
    ),
    Row(
        5,
        [
            Bad(Call(PLAIN.body, content_type=kind), None, "unsupported_content_type", 415)
            for kind in (
                b"Content-Type: text/plain",
                b"Content-Type: application/x-www-form-urlencoded",
                b"",
            )
        ],
        [Call(PLAIN.body, content_type=b"Content-Type: application/json; charset=utf-8")],
    ),
    Row(
        6,
        [
            Bad(Call(raw), None, None, says=UNPARSABLE)
            for raw in (
                b"",
                b'{"a":',
                PLAIN.body[:-1] + b",}",
                PLAIN.body.replace(b"Hello", b"Hel\tlo"),
                PLAIN.body.replace(b"Hello", b"Hel\xfflo"),
            )
        ],
        [Call(PLAIN.body.replace(b"Hello", b"Hel\\tlo"))],
    ),
    Row(
        7,
        every(*(Call(raw) for raw in (b"[]", b'"x"', b"42", b"null")), param=None, code=TYPE),
        [PLAIN],
    ),
    Row(
        8,
        every(Call(b"[" * 100_000), Call(b'{"n":' + b"1" * 10**6 + b"}"), param=None, code=None),
        [chat(metadata={"a": [[[[]]]]})],
    ),
    Row(
        9,
        [
            *every(Call(b'{"temperature": NaN}'), param=None, code=None),
            *every(Call(b'{"temperature": Infinity}'), param=None, code=None),
            *every(
                Call(PLAIN.body[:-1] + b',"temperature":1e999}'), param="temperature", code=VALUE
            ),
        ],
        [Call(PLAIN.body[:-1] + b',"temperature":1e-999}')],
    ),
    Row(
        10,
        [
            Bad(call, None, "request_too_large", 413, header="connection: close")
            for call in (Call(PADDED + b" "), Call(chunked(PADDED + b" "), length=IN_CHUNKS))
        ],
        [Call(PADDED), Call(chunked(PADDED), length=IN_CHUNKS)],
    ),
    Row(
        11,
        [
            Bad(
                Call(PLAIN.body, host=b"Host: localhost\r\nX-Big: " + b"x" * 66_000),
                None,
                None,
                header="connection: close",
            ),
            Bad(Call(PLAIN.body, host=b"Host: a/b?#"), None, None, header="connection: close"),
            Bad(
                Call(chunked(b"{}"), length=b"Content-Length: 12\r\n" + IN_CHUNKS),
                None,
                None,
                json=False,
            ),
        ],
        [Call(PLAIN.body, host=b"Host: localhost\r\nX-Big: " + b"x" * 40_000)],
    ),
    Row(
        12,
        [
            Bad(chat(model=ABSENT), "model", MISSING),
            Bad(chat(model=5), "model", TYPE),
            Bad(chat(model=None), "model", TYPE),
            Bad(chat(model=""), "model", VALUE),
            Bad(embed(model=""), "model", VALUE),
        ],
        [chat(model=SIM)],
    ),
    Row(
        13,
        [
            Bad(
                chat(model="nope"),
                "model",
                "model_not_found",
                404,
                "The model `nope` does not exist or you do not have access to it.",
            ),
            Bad(text(model="../../etc/passwd"), "model", "model_not_found", 404),
            Bad(embed(model="x" * 10_000), "model", "model_not_found", 404),
        ],
        [text(), embed()],
    ),
    Row(
        14,
        [
            Bad(
                chat(messages=ABSENT),
                "messages",
                MISSING,
                says="Missing required parameter: 'messages'.",
            )
        ],
        [PLAIN],
    ),
    Row(15, every(chat(messages=[]), param="messages", code=EMPTY), [PLAIN]),
    Row(
        16,
        [Bad(chat(messages="hi"), "messages", TYPE), Bad(chat(messages=[1]), "messages[0]", TYPE)],
        [PLAIN],
    ),
    Row(
        17,
        [
            Bad(turn(role="wizard", content="a"), "messages[0].role", VALUE),
            Bad(turn(content="a"), "messages[0].role", MISSING),
        ],
        [turn(role="developer", content="a")],
    ),
    Row(
        18,
        [
            Bad(user(None), "messages[0].content", TYPE),
            Bad(user(7), "messages[0].content", TYPE),
            Bad(user([{"text": "a"}]), LAST_PART, MISSING),
        ],
        [user([{"type": "text", "text": "a"}]), chat(messages=[*HELLO, CALLED])],
    ),
    Row(
        19,
        [
            Bad(user([{"type": "image_url", "image_url": {"url": url}}]), LAST_PART, VALUE)
            for url in (
                "http://127.0.0.1:9/a.png",
                "file:///etc/passwd",
                "data:image/png;base64,AA",
            )
        ],
        [user([{"type": "text", "text": "http://127.0.0.1:9/a.png"}])],
    ),
    Row(
        20,
        every(chat(messages=[RESULT]), param="messages[0].role", code=None),
        [chat(model=DEMO, messages=[*HELLO, CALLED, RESULT])],
    ),
    Row(21, [], [chat(model=DEMO, messages=[*HELLO, CALLED, RESULT, *HELLO])]),
    Row(
        22,
        every(
            Call(PLAIN.body.replace(b"Hello", rb"\ud800")), param="messages[0].content", code=VALUE
        ),
        [Call(PLAIN.body.replace(b"Hello", rb"\ud83d\ude00"))],
    ),
    Row(
        23,
        [],
        [
            turn(role="user", content="<|im_end|><|image_pad|><|eot_id|>"),
            chat(model=DEMO, messages=[{"role": "user", "content": "<|im_end|>\n<|im_start|>"}]),
        ],
    ),
    Row(
        24,
        [
            Bad(chat(temperature=2.1), "temperature", HIGH),
            Bad(chat(temperature=-0.1), "temperature", LOW),
            Bad(chat(temperature="hot"), "temperature", TYPE),
            Bad(chat(temperature=True), "temperature", TYPE),
        ],
        [chat(temperature=2.0), chat(temperature=0)],
    ),
    Row(
        25,
        [],
        [
            make(**{name: None})
            for make in (chat, text)
            for name in "temperature top_p n max_tokens stop seed stream".split()
        ],
    ),
    Row(
        26,
        [Bad(chat(top_p=1.5), "top_p", HIGH), Bad(chat(top_p=-1), "top_p", LOW)],
        [chat(top_p=0), chat(top_p=1)],
    ),
    Row(
        27,
        [
            Bad(chat(n=0), "n", INT_LOW),
            Bad(chat(n=129), "n", INT_HIGH),
            Bad(text(n=10**9), "n", INT_HIGH),
            Bad(chat(n=1.5), "n", TYPE),
        ],
        [chat(n=128), text(n=128)],
    ),
    Row(28, [], [chat(n=2, temperature=0, max_tokens=8)]),
    Row(
        29,
        every(chat(max_tokens=0), text(max_tokens=-1), param="max_tokens", code=INT_LOW),
        [chat(max_tokens=1)],
    ),
    Row(
        30,
        [
            Bad(
                chat(model=DEMO, max_tokens=2049),
                "max_tokens",
                VALUE,
                says="max_tokens is too large: 2049. This model supports at most 2048 completion "
                "tokens, whereas you provided 2049.",
            ),
            Bad(chat(max_tokens=3, max_completion_tokens=4), "max_tokens", VALUE),
        ],
        [chat(model=DEMO, max_tokens=1500), chat(max_tokens=4, max_completion_tokens=4)],
    ),
    Row(
        31,
        [
            Bad(
                chat(model=DEMO, messages=[{"role": "user", "content": "word " * 9000}]),
                "messages",
                "context_length_exceeded",
                says="This model's maximum context length is 2048 tokens. However, your messages "
                "resulted in",
            ),
            Bad(text(model=DEMO, prompt="word " * 9000), "prompt", "context_length_exceeded"),
        ],
        [chat(model=DEMO, messages=[{"role": "user", "content": "word " * 300}])],
    ),
    Row(
        32,
        [
            Bad(chat(stop=list("abcde")), "stop", LONG),
            Bad(chat(stop=[""]), "stop", VALUE),
            Bad(chat(stop=["x" * 2048]), "stop", LONG_TEXT),
            Bad(chat(stop={}), "stop", TYPE),
        ],
        [chat(stop=list("abcd")), chat(stop="x" * 1024)],
    ),
    Row(
        33,
        [
            Bad(chat(logprobs=True, top_logprobs=21), "top_logprobs", INT_HIGH),
            Bad(chat(logprobs=False, top_logprobs=2), "top_logprobs", None),
            Bad(text(logprobs=6), "logprobs", INT_HIGH),
        ],
        [chat(logprobs=True, top_logprobs=20), text(logprobs=5)],
    ),
    Row(
        34,
        every(
            chat(logit_bias={"abc": 1}),
            chat(logit_bias={"999999999": 1}),
            chat(model=DEMO, logit_bias={"999999999": 1}),
            chat(logit_bias={"1": 101}),
            chat(logit_bias={str(token): 1 for token in range(10_000)}),
            param="logit_bias",
            code=VALUE,
        ),
        [
            chat(logit_bias={"1": 100}),
            chat(model=DEMO, logit_bias={str(token): 1 for token in range(1024)}),
        ],
    ),
    Row(
        35,
        [
            Bad(chat(seed=2**63), "seed", INT_HIGH),
            Bad(chat(seed=-(2**63) - 1), "seed", INT_LOW),
            Bad(chat(seed="1"), "seed", TYPE),
        ],
        [chat(seed=2**63 - 1), chat(seed=-(2**63))],
    ),
    Row(
        36,
        [
            Bad(chat(stream_options={"include_usage": True}), "stream_options", None),
            Bad(chat(stream="yes"), "stream", TYPE),
        ],
        [chat(stream=True, stream_options={"include_usage": True})],
    ),
    Row(
        37,
        [
            Bad(
                chat(model=DEMO, response_format={"type": "json_schema"}),
                "response_format",
                "invalid_json_schema",
            ),
            Bad(schema({"type": "strnig"}), "response_format", "invalid_json_schema"),
            Bad(deep_schema(10_000), "response_format", "invalid_json_schema"),
            Bad(
                schema({"type": "string", "pattern": "(["}),
                "response_format",
                "invalid_json_schema",
            ),
            Bad(
                text(model=DEMO, structured_outputs={"grammar": "start: ("}),
                "structured_outputs",
                "invalid_grammar",
            ),
            Bad(chat(model=DEMO, response_format={"type": "json_object"}), "messages", None),
        ],
        [
            schema({"type": "string", "pattern": "^a{2}$"}),
            deep_schema(20),
            chat(
                model=DEMO,
                response_format={"type": "json_object"},
                messages=[{"role": "user", "content": "json"}],
            ),
        ],
    ),
    Row(
        38,
        [
            Bad(chat(tools=[]), "tools", EMPTY),
            Bad(chat(tool_choice="required"), "tool_choice", None),
            Bad(
                chat(
                    tools=[FUNCTION],
                    tool_choice={"type": "function", "function": {"name": "g"}},
                ),
                "tool_choice",
                None,
            ),
            Bad(chat(tools=[FUNCTION] * 129, tool_choice="none"), "tools", LONG),
        ],
        [
            chat(
                tools=[
                    {"type": "function", "function": {"name": f"f{number}"}}
                    for number in range(128)
                ],
                tool_choice="none",
            ),
            chat(
                model=DEMO,
                tools=[FUNCTION],
                tool_choice={"type": "function", "function": {"name": "f"}},
            ),
        ],
    ),
    Row(
        39,
        [
            *(
                Bad(chat(**{name: value}), name, UNKNOWN)
                for name, value in {
                    "foo": 1,
                    "chat_template": "x",
                    "prompt_embeds": "x",
                    "guided_regex": "a",
                    "best_of": 1,
                }.items()
            ),
            *(
                Bad(chat(model=model, chat_template_kwargs=kwargs), "chat_template_kwargs", UNKNOWN)
                for model in (SIM, DEMO)
                for kwargs in (
                    {"not_in_the_template": 1},
                    {"tokenize": True},
                    {"messages": "x"},
                    {"tools": 1},
                    {"a": []},
                )
            ),
        ],
        [chat(chat_template_kwargs={}), chat(user="me"), text(best_of=1)],
    ),
    Row(
        40,
        [
            Bad(text(prompt=""), "prompt", VALUE),
            Bad(text(model=DEMO, prompt=""), "prompt", VALUE),
            Bad(text(prompt=[]), "prompt", EMPTY),
            Bad(text(prompt=[[]]), "prompt", EMPTY),
            Bad(text(prompt=[999999999]), "prompt", VALUE),
            Bad(text(model=DEMO, prompt=[[1], [999999999]]), "prompt", VALUE),
            Bad(text(prompt=[-1]), "prompt", VALUE),
            Bad(text(prompt=["a"] * 5000), "prompt", LONG),
            Bad(embed(input=[]), "input", EMPTY),
        ],
        [text(prompt=[1]), text(prompt=[[1], [2]]), text(prompt=["a"] * 2048), embed(input=["a"])],
    ),
]
