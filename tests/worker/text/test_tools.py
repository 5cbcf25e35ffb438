"""How tools, calls and their results reach a prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocol import conversation
from protocol.errors import TriremeError
from worker.text.prompt import TextModel, effort_kwargs, thinking_kwargs
from worker.text.response import choose_format
from worker.text.templates import JinjaTemplate, NamedTemplate, RenderOptions
from worker.text.tokenizer import HFTokenizer
from worker.text.tools import with_tools, without_calls

TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "Tells it."}}
CALL: Any = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
}
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
    {"role": "tool", "content": [{"type": "text", "text": "sun"}], "tool_call_id": "call_1"},
]
AS_OBJECT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}{{ tools | tojson if tools }}"
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking %}<think>{% endif %}{% endif %}"
)
AS_TEXT = AS_OBJECT.replace("c.function.arguments | tojson", "'args=' + c.function.arguments")


def test_calls_and_results_become_texts_of_their_turns() -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert without_calls(HISTORY) == [
        HISTORY[0],
        {"role": "assistant", "content": f"{call}\n{call}"},
        {
            "role": "user",
            "content": "<tool_response>\nrain\n</tool_response>\n"
            "<tool_response>\nsun\n</tool_response>",
        },
    ]


def test_tools_are_told_behind_the_system_message() -> None:
    told = with_tools(HISTORY[:1], [TOOL])
    assert [one["role"] for one in told] == ["system", "user"]
    assert json.dumps(TOOL["function"]) in told[0]["content"]
    system = {"role": "system", "content": "Be brief."}
    told = with_tools([system, *HISTORY[:1]], [TOOL])
    assert [one["role"] for one in told] == ["system", "user"]
    assert told[0]["content"].startswith("Be brief.\n\n")
    assert json.dumps(TOOL["function"]) in told[0]["content"]


def test_a_template_without_tools_gets_them_as_text(byte_level: Any) -> None:
    for template in (JinjaTemplate(byte_level), NamedTemplate(conversation.plain())):
        assert not template.knows_tools
        model = TextModel(HFTokenizer(byte_level), template)
        text = model.encode_messages(HISTORY, RenderOptions(tools=[TOOL])).text
        assert json.dumps(TOOL["function"]) in text
        assert text.count('{"city": "Oslo"}') == 2
        assert "<tool_response>\nrain\n" in text


@pytest.mark.parametrize(
    ("source", "shown"), [(AS_OBJECT, '{"city": "Oslo"}'), (AS_TEXT, 'args={"city": "Oslo"}')]
)
def test_arguments_come_as_the_template_writes_them(
    byte_level: Any, source: str, shown: str
) -> None:
    template = JinjaTemplate(byte_level, source)
    assert template.knows_tools
    rendered = template.render(template.prepared(HISTORY), RenderOptions(tools=[TOOL]))
    assert rendered.count(shown) == 2
    assert json.dumps(TOOL) in rendered
    cut = {**CALL, "function": {"name": "weather", "arguments": '{"city": "Os'}}
    broken = [HISTORY[0], {**HISTORY[1], "tool_calls": [cut]}]
    assert "Os" in template.render(template.prepared(broken), RenderOptions())


def test_a_turn_starts_before_its_reasoning(byte_level: Any) -> None:
    assert JinjaTemplate(byte_level, AS_OBJECT).turn_start == "[assistant]"
    thinking = AS_OBJECT.replace("if enable_thinking", "if true")
    assert JinjaTemplate(byte_level, thinking).turn_start == "[assistant]"
    assert JinjaTemplate(byte_level, "{{ messages[0].content }}").turn_start == ""


def model_of(byte_level: Any, source: str) -> TextModel:
    tokenizer, template = HFTokenizer(byte_level), JinjaTemplate(byte_level, source)
    found = choose_format(tokenizer, template, None, "auto", "auto")
    return TextModel(tokenizer, template, found)


def test_effort_goes_to_the_templates_own_switch(byte_level: Any) -> None:
    switch = model_of(byte_level, AS_OBJECT)
    assert effort_kwargs(switch, None) == {}
    assert effort_kwargs(switch, "none") == {"enable_thinking": False}
    assert effort_kwargs(switch, "low") == {"enable_thinking": True}
    named = model_of(byte_level, "{{ messages[0].content }}{{ reasoning_effort }}")
    assert effort_kwargs(named, "low") == {"reasoning_effort": "low"}
    plain = model_of(byte_level, "{{ messages[0].content }}")
    assert effort_kwargs(plain, "none") == {}
    always = model_of(byte_level, "{{ messages[0].content }}<think>")
    for model, effort in ((plain, "high"), (always, "none")):
        with pytest.raises(TriremeError) as caught:
            effort_kwargs(model, effort)
        assert (caught.value.code, caught.value.param) == (
            "unsupported_by_model",
            "reasoning_effort",
        )


def test_thinking_is_switched_where_there_is_a_switch(byte_level: Any) -> None:
    switch = model_of(byte_level, AS_OBJECT)
    assert thinking_kwargs(switch, None) == {}
    assert thinking_kwargs(switch, False) == {"enable_thinking": False}
    assert thinking_kwargs(switch, True) == {"enable_thinking": True}
    plain = model_of(byte_level, "{{ messages[0].content }}")
    always = model_of(byte_level, "{{ messages[0].content }}<think>")
    assert thinking_kwargs(plain, False) == thinking_kwargs(always, True) == {}
    for model, thinking in ((plain, True), (always, False)):
        with pytest.raises(TriremeError) as caught:
            thinking_kwargs(model, thinking)
        assert (caught.value.code, caught.value.param) == ("unsupported_by_model", "thinking")
