from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol import conversation
from protocol.errors import TriremeError
from worker.engine.protocol import ModelLoadError
from worker.text.templates import (
    JinjaTemplate,
    NamedTemplate,
    RenderOptions,
    checked_kwargs,
    choose_template,
)

HELLO = [{"role": "user", "content": "hello"}]
PLAIN = RenderOptions()


def jinja(byte_level: Any, source: str) -> JinjaTemplate:
    return JinjaTemplate(byte_level, source)


def test_the_models_own_template_comes_before_the_plain_one(byte_level: Any) -> None:
    template = choose_template(byte_level, None, None)
    expected = byte_level.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=True)
    assert template.render(HELLO, PLAIN) == expected


def test_a_template_file_comes_before_the_models_own(byte_level: Any, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("FILE {{ messages[0].content }}")
    assert choose_template(byte_level, None, file).render(HELLO, PLAIN) == "FILE hello"


def test_a_named_conversation_comes_first(byte_level: Any) -> None:
    template = choose_template(byte_level, "vicuna_v1.1", None)
    assert template.render(HELLO, PLAIN).endswith("USER: hello ASSISTANT:")
    assert not template.writes_bos


def test_without_any_template_a_plain_one_is_taken() -> None:
    template = choose_template(None, None, None)
    assert template.conversation == conversation.plain()
    assert template.stops == conversation.plain().stops


def test_a_template_file_that_is_no_jinja_cannot_be_loaded(byte_level: Any, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{% for %}")
    with pytest.raises(ModelLoadError, match="chat template is not usable"):
        choose_template(byte_level, None, file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ModelLoadError, match="--chat-template"):
        choose_template(byte_level, None, file)


def test_a_chatml_template_is_recognised_for_fastchats_gateway(byte_level: Any) -> None:
    found = choose_template(byte_level, None, None).conversation
    rendered = conversation.render(conversation.from_messages(found, HELLO))
    assert rendered.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_that_refuses_makes_a_400(byte_level: Any) -> None:
    template = jinja(byte_level, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TriremeError, match="roles must alternate") as caught:
        template.render(HELLO, PLAIN)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "messages")


def test_a_template_cannot_leave_the_sandbox(byte_level: Any) -> None:
    template = jinja(byte_level, "{{ messages.__class__.__mro__ }}")
    with pytest.raises(TriremeError):
        template.render(HELLO, PLAIN)


def test_a_role_that_a_named_conversation_lacks_makes_a_400() -> None:
    template = NamedTemplate(conversation.plain())
    with pytest.raises(TriremeError, match="role"):
        template.render([{"role": "tool", "content": "x"}], PLAIN)


def test_developer_is_system_for_a_template_that_does_not_know_it(byte_level: Any) -> None:
    messages = [{"role": "developer", "content": "be brief"}, *HELLO]
    as_system = [{"role": "system", "content": "be brief"}, *HELLO]
    old = jinja(byte_level, "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}")
    assert old.render(messages, PLAIN) == "system:be brief;user:hello;"
    new = jinja(byte_level, old.source + "{# developer #}")
    assert new.render(messages, PLAIN) == "developer:be brief;user:hello;"
    named = NamedTemplate(conversation.named("vicuna_v1.1"))
    assert named.render(messages, PLAIN) == named.render(as_system, PLAIN)


def test_text_parts_are_joined_for_a_template_that_reads_text(byte_level: Any) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    rendered = jinja(byte_level, "{{ messages[0].content + '!' }}").render(
        [{"role": "user", "content": parts}], PLAIN
    )
    assert rendered == "a\nb!"


def test_parts_are_handed_to_a_template_that_reads_parts(byte_level: Any) -> None:
    reads_parts = "{% for p in messages[0].content %}[{{ p.text }}]{% endfor %}"
    template = jinja(byte_level, reads_parts)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert template.render([{"role": "user", "content": parts}], PLAIN) == "[a][b]"
    assert template.render(HELLO, PLAIN) == "[hello]"


def test_a_template_with_generation_blocks_and_loop_controls_loads(byte_level: Any) -> None:
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert jinja(byte_level, source).render(HELLO, PLAIN) == "hello"


def test_the_final_message_is_continued(byte_level: Any) -> None:
    template = choose_template(byte_level, None, None)
    messages = [*HELLO, {"role": "assistant", "content": "Hi th"}]
    options = RenderOptions(add_generation_prompt=False, continue_final_message=True)
    assert template.render(messages, options).endswith("<|im_start|>assistant\nHi th")


def test_a_template_variable_reaches_the_template(byte_level: Any) -> None:
    template = choose_template(byte_level, None, None)
    options = RenderOptions(kwargs=checked_kwargs(template, {"enable_thinking": False}))
    assert template.render(HELLO, options).endswith("<think></think>")


@pytest.mark.parametrize(
    "kwargs",
    [
        {"unknown": 1},
        {"messages": "x"},
        {"tokenize": True},
        {"bos_token": "<s>"},
        {"enable_thinking": [1]},
        {"raise_exception": "x"},
    ],
)
def test_a_variable_that_is_unknown_reserved_or_no_scalar_is_refused(
    byte_level: Any, kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TriremeError) as caught:
        checked_kwargs(choose_template(byte_level, None, None), kwargs)
    assert caught.value.code == "unknown_parameter"
    assert caught.value.param == "chat_template_kwargs"
