"""Conversations render what FastChat renders, and find the template that a model has."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.conversation import (
    Conversation,
    SeparatorStyle,
    from_messages,
    match_by_probe,
    named,
    names,
    plain,
    render,
)

GOLDENS: dict[str, Any] = json.loads(
    gzip.decompress((Path(__file__).parent / "conversation_goldens.json.gz").read_bytes())
)
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Who?"},
]
SYSTEM = {"role": "system", "content": "Be brief."}


def messages(title: str) -> tuple[list[dict[str, Any]], bool]:
    """A golden conversation as role messages, and whether it ends in a pending turn."""
    turns = GOLDENS["conversations"][title]
    pending = bool(turns) and turns[-1][1] is None
    return [{"role": r, "content": c} for r, c in turns[: len(turns) - pending]], pending


@pytest.mark.parametrize("name", GOLDENS["templates"])
def test_a_named_template_renders_as_fastchat_renders_it(name: str) -> None:
    for title, expected in GOLDENS["templates"][name]["prompts"].items():
        said, pending = messages(title)
        conv = from_messages(named(name), said, add_generation_prompt=pending)
        assert render(conv) == expected, title


@pytest.mark.parametrize("name", GOLDENS["templates"])
def test_the_wire_form_is_what_a_fastchat_worker_sends(name: str) -> None:
    assert named(name).to_wire() == GOLDENS["templates"][name]["wire"]


@pytest.mark.parametrize("name", GOLDENS["templates"])
def test_what_a_fastchat_worker_sends_is_read_as_the_same_template(name: str) -> None:
    assert Conversation.from_wire(GOLDENS["templates"][name]["wire"]) == named(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "llama-3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "gemma",
            "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
            "<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n",
        ),
        ("cllm", "Be brief. USER: Who? ASSISTANT:"),
        ("steerlm", "Be brief.\nuser: Hi\nassistant: Hello.\nuser: Who?\nassistant:"),
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        ("plain", "Be brief.\nUser: Hi\nAssistant: Hello.\nUser: Who?\nAssistant:"),
    ],
)
def test_the_styles_that_the_fschat_package_lacks(name: str, expected: str) -> None:
    assert render(from_messages(named(name), [SYSTEM, *TURNS])) == expected


def test_every_style_has_a_record() -> None:
    for style in SeparatorStyle:
        conv = Conversation("x", sep_style=style, sep="|", sep2="|", messages=(("USER", "Hi"),))
        assert "Hi" in render(conv)


@pytest.mark.parametrize("name", names())
def test_a_wire_form_uses_only_the_packages_styles_and_survives_json(name: str) -> None:
    wire = json.loads(json.dumps(named(name).to_wire()))
    assert 1 <= wire["sep_style"] <= 19
    assert sorted(wire) == sorted(field.name for field in dataclasses.fields(Conversation))
    again = Conversation.from_wire(wire)
    assert again.to_wire() == wire
    said = [SYSTEM, *TURNS[-1:]]
    assert render(from_messages(again, said)) == render(from_messages(named(name), said))


def test_the_styles_of_fastchats_main_branch_are_told_by_its_newer_fields() -> None:
    newer = {"system_message_vision": "", "max_image_size_mb": None}
    wire = {"name": "x", "sep": "|", "sep2": "|"}
    expected = {1: "ADD_COLON_SINGLE", 8: "LLAMA3", 9: "CHATGLM", 10: "CHATML", 20: "YUAN2"}
    expected |= {21: "GEMMA", 22: "CLLM", 23: "DEFAULT"}
    for number, style in expected.items():
        assert Conversation.from_wire(wire | newer | {"sep_style": number}).sep_style.name == style
    assert Conversation.from_wire(wire | {"sep_style": 8}).sep_style is SeparatorStyle.CHATGLM


@pytest.mark.parametrize(
    "wire",
    [
        {},
        {"name": "x", "sep_style": 99},
        {"name": "x", "sep_style": 24, "system_message_vision": "", "max_image_size_mb": None},
        {"name": "x", "sep_style": 1, "roles": ["only one"]},
        {"name": "x", "sep_style": 1, "stop_token_ids": ["</s>"]},
    ],
)
def test_an_object_that_is_no_conversation_is_a_value_error(wire: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Conversation"):
        Conversation.from_wire(wire)


@pytest.mark.parametrize("template", ["{system_message", "}", "{system_message!}"])
def test_a_template_from_the_wire_that_cannot_be_filled_is_refused(template: str) -> None:
    wire = {"name": "x", "sep_style": 4, "system_template": template}
    with pytest.raises(ValueError, match=r"'[{}!]'|field name|conversion"):
        Conversation.from_wire(wire)


TEXT = st.text(alphabet="ab {}<n>\r\n|:", max_size=8)
PACKAGED = [style for style in SeparatorStyle if style <= SeparatorStyle.YUAN2]


@given(
    style=st.sampled_from(PACKAGED),
    system=TEXT,
    roles=st.tuples(TEXT, TEXT),
    texts=st.lists(st.none() | TEXT, max_size=5),
    sep=TEXT,
    sep2=st.none() | TEXT,
    stops=st.none() | TEXT | st.lists(TEXT).map(tuple),
)
def test_any_conversation_survives_the_wire(
    style: SeparatorStyle,
    system: str,
    roles: tuple[str, str],
    texts: list[str | None],
    sep: str,
    sep2: str | None,
    stops: str | tuple[str, ...] | None,
) -> None:
    messages = tuple((roles[i % 2], text) for i, text in enumerate(texts))
    conv = Conversation(
        name="x",
        system_message=system,
        roles=roles,
        messages=messages,
        sep_style=style,
        sep=sep,
        sep2=sep2,
        stop_str=stops,
        stop_token_ids=(1, 2),
    )
    again = Conversation.from_wire(json.loads(json.dumps(conv.to_wire())))
    assert again == conv
    assert render(again) == render(conv)


def test_a_template_from_the_wire_cannot_reach_attributes() -> None:
    wire = {"name": "x", "sep_style": 4, "system_template": "{system_message.__class__}"}
    assert render(Conversation.from_wire(wire | {"system_message": "Hi"})) == "Hi"


def test_the_last_system_message_wins() -> None:
    said = [{"role": "system", "content": "first"}, *TURNS[:1], SYSTEM]
    assert from_messages(plain(), said).system_message == "Be brief."


def test_text_parts_are_joined_by_a_line_break() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    conv = from_messages(plain(), [{"role": "user", "content": parts}])
    assert conv.messages == (("User", "one\ntwo"), ("Assistant", None))


def test_a_part_that_is_not_text_is_named() -> None:
    said = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(ValueError, match="'image_url' is not text"):
        from_messages(plain(), said)


def test_a_role_without_a_place_is_named() -> None:
    with pytest.raises(ValueError, match="role 'tool' has no place"):
        from_messages(plain(), [{"role": "tool", "content": "4"}])


def test_an_open_last_message_has_no_suffix() -> None:
    conv = from_messages(named("chatml"), TURNS[:2], add_generation_prompt=False)
    assert render(conv, open_last=True).endswith("<|im_start|>assistant\nHello.")
    assert render(conv).endswith("Hello.<|im_end|>\n")


def test_a_template_with_examples_keeps_them_in_front() -> None:
    conv = from_messages(named("one_shot"), TURNS[:1])
    assert conv.offset == 2
    assert conv.messages[2:] == (("Human", "Hi"), ("Assistant", None))
    assert len(named("one_shot").messages) == 2


def test_an_unknown_name_lists_close_ones() -> None:
    with pytest.raises(ValueError, match=r"'Vicuna-v1\.1'; did you mean vicuna_v1\.1"):
        named("Vicuna-v1.1")
    with pytest.raises(ValueError, match=r"no conversation template 'zzzzz'$"):
        named("zzzzz")


def test_stops_are_a_tuple_however_the_template_says_them() -> None:
    assert named("vicuna_v1.1").stops == ()
    assert named("zero_shot").stops == ("###",)
    assert named("aquila-chat").stops == ("###", "</s>", "[UNK]")
    assert plain().stops == ("\nUser:", "\nAssistant:")


# ---- templates found by probes ------------------------------------------------------------------

LOOP = "{% for m in messages %}"
CHATML = LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHATML += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
QWEN = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are {helpful}.<|im_end|>\n"
QWEN += "{% endif %}" + CHATML
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set sys = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set sys = '' %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}"
    "{{ '<s>[INST] ' + (sys if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
)
GEMMA_3 = (
    "<bos>{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}"
    "{% endif %}"
    "{% for m in rest %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ (first if loop.first else '') + m.content }}<end_of_turn>\n{% endfor %}"
    "<start_of_turn>model\n"
)
REFUSES = "{% if messages[0].role == 'system' %}{{ 1 / 0 }}{% endif %}" + GEMMA_3
LLAMA_3 = (
    "{% for m in messages %}{% if loop.first %}<|begin_of_text|>{% endif %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
VICUNA = (
    "{{ messages[0].content if messages[0].role == 'system' else DEFAULT }} "
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} "
    "{% elif m.role == 'assistant' %}ASSISTANT: {{ m.content }}</s>{% endif %}{% endfor %}"
    "ASSISTANT:"
)


def jinja(template: str) -> Callable[[list[dict[str, str]]], str]:
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(keep_trailing_newline=True)
    compiled = sandbox.from_string(template)
    default = named("vicuna_v1.1").system_message
    return lambda said: compiled.render(messages=said, add_generation_prompt=True, DEFAULT=default)


def rendered(conv: Conversation | None, said: list[dict[str, Any]]) -> str:
    assert conv is not None
    return render(from_messages(conv, said))


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (CHATML, "chatml"),
        (LLAMA_3, "llama-3"),
        (VICUNA, "vicuna_v1.1"),
        ("<s>" + VICUNA, "vicuna_v1.1"),
        (REFUSES, "gemma"),
    ],
)
def test_a_jinja_template_is_recognised_as_a_named_one(template: str, name: str) -> None:
    found = match_by_probe(jinja(template))
    assert found is not None
    assert found.name == name
    assert found.stop_token_ids is None, "those are ids of another model's vocabulary"


@pytest.mark.parametrize(
    "template",
    [
        QWEN,
        "<s>" + QWEN,
        CHATML.replace("im_", "turn_"),
        CHATML.replace("<|im_end|>", "{{ '{}' }}"),
    ],
)
def test_an_unnamed_template_is_read_off_its_renderings(template: str) -> None:
    found = match_by_probe(jinja(template))
    for said in (TURNS, TURNS[:1], [SYSTEM, *TURNS], [SYSTEM, *TURNS[:1]]):
        assert rendered(found, said) == jinja(template)(said)


@pytest.mark.parametrize("template", [QWEN, "<s>" + QWEN, CHATML.replace("system", "sys")])
def test_a_derived_template_has_the_marks_where_a_reader_sees_them(template: str) -> None:
    found = match_by_probe(jinja(template))
    assert found is not None
    assert found.roles == ("<|im_start|>user\n", "<|im_start|>assistant\n")
    assert found.sep == found.sep2 == "<|im_end|>\n"
    assert found.stops == ("<|im_end|>",)


def test_an_optional_system_part_is_sent_as_one_that_is_always_there() -> None:
    template = CHATML.replace("im_", "turn_")
    found = match_by_probe(jinja(template))
    assert found is not None
    sent = Conversation.from_wire(found.to_wire())
    assert rendered(sent, [SYSTEM, *TURNS]) == jinja(template)([SYSTEM, *TURNS])
    empty = {"role": "system", "content": ""}
    assert rendered(sent, TURNS) == jinja(template)([empty, *TURNS])


@pytest.mark.parametrize("template", [GEMMA_3, REFUSES.replace("model", "agent")])
def test_a_system_message_without_a_part_of_its_own_goes_in_front(template: str) -> None:
    found = match_by_probe(jinja(template))
    assert rendered(found, TURNS) == jinja(template)(TURNS)
    assert "Be brief." in rendered(found, [SYSTEM, *TURNS])


def test_llama_2_which_folds_the_system_message_into_the_first_turn_is_recognised() -> None:
    found = match_by_probe(jinja(LLAMA2))
    assert found is not None
    assert found.name == "llama-2"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[-1].content }}{{ messages | length }}",
        "constant",
        "{% for m in messages %}{{ m.nothing.at.all }}{% endfor %}",
        CHATML + "{% if messages | length == 1 %}<think>{% endif %}",
    ],
)
def test_a_template_that_no_conversation_equals_is_not_recognised(template: str) -> None:
    assert match_by_probe(jinja(template)) is None


@pytest.mark.parametrize("name", names())
def test_a_named_template_is_recognised_by_its_own_rendering(name: str) -> None:
    found = match_by_probe(lambda said: render(from_messages(named(name), said)))
    assert found is not None
    assert rendered(found, [SYSTEM, *TURNS]) == rendered(named(name), [SYSTEM, *TURNS])
    assert rendered(found, TURNS) == rendered(named(name), TURNS)
