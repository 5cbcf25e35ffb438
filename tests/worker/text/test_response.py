"""Reasoning and calls are read from what the families of models write, however it is cut."""

from __future__ import annotations

import json
import random
import time
from typing import Any, NamedTuple

import pytest

from worker.text.formats import NONE, REASONING, TOOL_CALLS, reasoning_format_of, tool_format_of
from worker.text.reading import Reader
from worker.text.response import ResponseFormat, choose_format
from worker.text.templates import JinjaTemplate
from worker.text.tokenizer import HFTokenizer

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}
    for name in ("weather", "move-to")
]
OSLO = ("weather", {"city": "Oslo <a>", "days": 2})
ROME = ("move-to", {"city": "Rom\n"})
CALLS = [OSLO, ROME]


class Read(NamedTuple):
    text: str
    reasoning: str
    calls: list[tuple[str, Any]]


def format_of(tools: str = NONE, reasoning: str = NONE, turn_start: str = "") -> ResponseFormat:
    fields = {**REASONING.get(reasoning, {}), **TOOL_CALLS.get(tools, {})}
    return ResponseFormat(fields, {}, names=(tools, reasoning), turn_start=turn_start)


def reader_of(form: ResponseFormat, prompt: str = "", *, parallel: bool = True) -> Reader:
    reading = form.reading(prompt, TOOLS, parallel=parallel)
    assert reading is not None
    return reading.make()


def read(reader: Reader, pieces: list[str]) -> Read:
    texts, reasonings, calls = [], [], []
    for parts in [*map(reader.feed, pieces), reader.finish()]:
        texts.append(parts.text)
        reasonings.append(parts.reasoning)
        calls += parts.calls
    called: list[list[str]] = []
    for piece in calls:
        if piece.name is not None:
            assert piece.index == len(called)
            called.append([piece.name, piece.arguments])
        else:
            called[piece.index][1] += piece.arguments
    return Read("".join(texts), "".join(reasonings), [(n, json.loads(a)) for n, a in called])


def cut(text: str, rng: random.Random) -> list[str]:
    cuts = sorted(rng.randint(0, len(text)) for _ in range(rng.randint(0, 12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def written(name: str, arguments: Any, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments})


def listed(key: str = "arguments") -> str:
    return "[" + ", ".join(written(*call, key) for call in CALLS) + "]"


def tagged() -> str:
    return "\n".join(f"<tool_call>\n{written(*call)}\n</tool_call>" for call in CALLS)


DEEPSEEK_V3 = (
    "<｜tool▁calls▁begin｜>"
    + "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json.dumps(arguments)}\n```"
        "<｜tool▁call▁end｜>"
        for name, arguments in CALLS
    )
    + "<｜tool▁calls▁end｜>"
)
DEEPSEEK_V31 = (
    "<｜tool▁calls▁begin｜>"
    + "".join(
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json.dumps(arguments)}<｜tool▁call▁end｜>"
        for name, arguments in CALLS
    )
    + "<｜tool▁calls▁end｜>"
)
CODER = "\n".join(
    f"<tool_call>\n<function={name}>\n"
    + "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    + "</function>\n</tool_call>"
    for name, arguments in CALLS
)
HARMONY = (
    "<|channel|>analysis<|message|>Two\nthoughts.<|end|>"
    "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    f"{json.dumps(OSLO[1])}<|call|>"
    "<|start|>assistant to=functions.move-to<|channel|>commentary json<|message|>"
    f"{json.dumps(ROME[1])}"
)

WRITTEN = [
    ("hermes", NONE, f"I look.\n{tagged()}", Read("I look.", "", CALLS)),
    ("hermes", "think", f"<think>\nHm.\n</think>\n\n{tagged()}\n", Read("", "Hm.", CALLS)),
    ("hermes", "think", "<think>\n\n</think>\n\nHi <b> & <tool", Read("Hi <b> & <tool", "", [])),
    ("qwen3_coder", "think", f"Well.\n{CODER}", Read("Well.", "", CALLS)),
    ("llama3_json", NONE, written(*OSLO, "parameters"), Read("", "", [OSLO])),
    (
        "llama3_json",
        NONE,
        "; ".join(written(*call, "parameters") for call in CALLS),
        Read("", "", CALLS),
    ),
    ("llama3_json", NONE, f"<|python_tag|>{written(*OSLO, 'parameters')}", Read("", "", [OSLO])),
    (
        "llama3_json",
        NONE,
        json.dumps({"type": "function", "function": "weather", "parameters": OSLO[1]}),
        Read("", "", [OSLO]),
    ),
    ("mistral", NONE, f"[TOOL_CALLS] {listed()}", Read("", "", CALLS)),
    (
        "mistral",
        "mistral",
        "[THINK]Hm.[/THINK]Right."
        + "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(a)}" for name, a in CALLS),
        Read("Right.", "Hm.", CALLS),
    ),
    ("deepseek", "think", f"I look.{DEEPSEEK_V3}", Read("I look.", "", CALLS)),
    ("deepseek", "think", f"<think>Hm.</think>{DEEPSEEK_V31}", Read("", "Hm.", CALLS)),
    ("granite", NONE, f"<|tool_call|>{listed()}", Read("", "", CALLS)),
    ("phi4", NONE, f"<|tool_call|>{listed('parameters')}<|/tool_call|>", Read("", "", CALLS)),
    ("phi4", NONE, f"functools{listed()}", Read("", "", CALLS)),
    ("harmony", "harmony", HARMONY, Read("I look.", "Two\nthoughts.", CALLS)),
    (
        "harmony",
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hello!",
        Read("Hello!", "Hm.", []),
    ),
]


@pytest.mark.parametrize(("tools", "reasoning", "answer", "expected"), WRITTEN)
def test_what_a_family_writes(tools: str, reasoning: str, answer: str, expected: Read) -> None:
    form = format_of(tools, reasoning)
    assert read(reader_of(form), [answer]) == expected
    assert read(reader_of(form), list(answer)) == expected
    rng = random.Random(1)
    for _ in range(30):
        assert read(reader_of(form), cut(answer, rng)) == expected


@pytest.mark.parametrize(
    ("tools", "answer"),
    [
        ("hermes", 'Hm. <tool_call>{"name": "weather", "argum'),  # cut by max_tokens
        ("hermes", "<tool_call>no JSON</tool_call> and on"),
        ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": 3}</tool_call>'),
        ("hermes", "<tool_call>" + "[" * 5000 + "</tool_call>"),
        ("llama3_json", '{"name": "Ada", "born": 1815}'),
        ("llama3_json", '{"a": 1}'),
        ("mistral", "[TOOL_CALLS] soon"),
        ("granite", "<|tool_call|>[1]"),
        ("qwen3_coder", "<tool_call><function=nothing></function></tool_call>"),
        # cut inside the second parameter, behind the first, with words between
        (
            "qwen3_coder",
            "<tool_call><function=weather><parameter=city>Oslo</parameter><parameter=days>1",
        ),
        ("qwen3_coder", "<tool_call><function=weather><parameter=city>Oslo</parameter>"),
        (
            "qwen3_coder",
            "<tool_call><function=weather>so<parameter=city>Oslo</parameter></function></tool_call>",
        ),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"days": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"days": 1e999}}</tool_call>'),
        ("hermes", "<tool_call>[]</tool_call>"),
        ("harmony", "no channel at all"),
    ],
)
def test_what_is_no_call_stays_text(tools: str, answer: str) -> None:
    form = format_of(tools, "think")
    for pieces in ([answer], list(answer)):
        assert read(reader_of(form), pieces) == Read(answer, "", [])


def test_half_a_character_in_arguments_stays_json() -> None:
    answer = '<tool_call>{"name": "weather", "arguments": {"city": "\\ud83d"}}</tool_call>'
    parts = reader_of(format_of("hermes")).feed(answer + "x")
    assert [piece.arguments for piece in parts.calls] == ["", '{"city": "\\ud83d"}']


OPENINGS = ["", "[TOOL_CALLS]", "<|channel|>final", "{", "}", "<tool_call><function=weather>"]
PIECES = [" ", "\n", "a", "<", "{", "};", "<tool_call>", "<parameter=a>", "<tool_call><function=aa"]


@pytest.mark.parametrize("tools", TOOL_CALLS)
def test_a_model_that_repeats_itself_costs_little(tools: str) -> None:
    """Without bounds on the patterns each of these takes many seconds."""
    form = format_of(tools, "harmony" if tools == "harmony" else "think")
    began = time.process_time()
    for opening in OPENINGS:
        for piece in PIECES:
            read(reader_of(form), [opening, *[piece] * 2000, "x"])
    assert time.process_time() - began < 30


def test_reasoning_that_the_prompt_began() -> None:
    form = format_of("hermes", "think", turn_start="<|im_start|>assistant\n")
    prompt = "<|im_start|>assistant\n<think>a</think>x<|im_end|><|im_start|>assistant\n<think>\n"
    reader = reader_of(form, prompt)
    assert reader.reasoning
    assert read(reader, ["Hm.", "\n</thi", "nk>\n", "Yes."]) == Read("Yes.", "Hm.", [])
    closed = reader_of(form, prompt + "\n</think>\n\n")
    assert not closed.reasoning
    assert read(closed, ["Yes."]) == Read("Yes.", "", [])


def test_reasoning_cut_by_the_limit_is_reasoning() -> None:
    reader = reader_of(format_of(NONE, "think"))
    assert read(reader, ["<think>It", " is"]) == Read("", "It is", [])


def test_one_call_is_enough_where_several_are_not_wanted() -> None:
    for tools, answer in (("hermes", tagged()), ("granite", f"<|tool_call|>{listed()}")):
        reader = reader_of(format_of(tools), parallel=False)
        assert read(reader, ["Well. ", answer]) == Read("Well.", "", [OSLO])
        assert reader.full


def test_calls_are_not_read_where_no_tools_are() -> None:
    assert format_of("hermes").reading("", None, parallel=True) is None
    thinking = format_of("hermes", "think").reading("", None, parallel=True)
    assert thinking is not None
    answer = tagged()
    assert read(thinking.make(), [answer]) == Read(answer, "", [])


@pytest.mark.parametrize(
    ("source", "tools", "reasoning"),
    [
        ("{% if tools %}<tool_call></tool_call>{% endif %}", "hermes", NONE),
        ("{{ tools }}<tool_call><function=x></function>{{ '<think>' }}", "qwen3_coder", "think"),
        ("{{ tools }}<|python_tag|>", "llama3_json", NONE),
        ("{{ tools }}[TOOL_CALLS][THINK]", "mistral", "mistral"),
        ("{{ tools }}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜></think>", "deepseek", "think"),
        ("{{ tools }}<|tool_call|>", "granite", NONE),
        ("<|tool|>{{ tools }}<|/tool|><|tool_call|>", "phi4", NONE),
        ("{{ tools }}<|channel|>", "harmony", "harmony"),
        ("{{ messages }}", NONE, NONE),
    ],
)
def test_the_format_is_found_in_the_template(source: str, tools: str, reasoning: str) -> None:
    assert tool_format_of(source) == tools
    assert reasoning_format_of(source, ()) == reasoning


def test_a_model_that_knows_no_tools_is_read_as_it_was_told(byte_level: Any) -> None:
    tokenizer, template = HFTokenizer(byte_level), JinjaTemplate(byte_level)
    found = choose_format(tokenizer, template, None, "auto", "auto")
    assert found is not None
    assert (found.tool_format, found.reasoning_format) == ("hermes", "think")
    assert choose_format(tokenizer, template, None, "none", "none") is None


def test_a_checkpoints_own_description_comes_first(byte_level: Any) -> None:
    own = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "thinking": {"open": "((", "close": "))"},
            "tool_calls": {"open": "CALL ", "close": ";", "content": "json"},
            "content": {},
        },
    }
    tokenizer, template = HFTokenizer(byte_level), JinjaTemplate(byte_level)
    found = choose_format(tokenizer, template, own, "auto", "auto")
    assert found is not None
    reader = reader_of(found, "<|im_start|>assistant\n((")
    assert reader.reasoning
    answer = f"Hm.))Yes. CALL {written(*OSLO)};"
    assert read(reader, [answer]) == Read("Yes. ", "Hm.", [OSLO])
    named = choose_format(tokenizer, template, own, "hermes", "auto")
    assert named is not None
    assert named.tool_format == "hermes"
