"""Chat templates: how messages become one prompt text, by Jinja or by a named conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from protocol import conversation as conversations
from protocol.conversation import Conversation
from protocol.errors import TriremeError, quoted
from worker.engine.protocol import ModelLoadError

RESERVED_NAMES = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Names that a template gets from the request's own fields, never from `chat_template_kwargs`."""

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """What a request asks of the template beside the messages; `kwargs` are checked already.

    `tools` are functions as OpenAI describes them, for templates that tell the model of some.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    kwargs: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None


class ChatTemplate(Protocol):
    """Renders messages.

    Attributes:
        source: what determines the rendering: goes into the model's digest.
        conversation: the nearest FastChat conversation, for FastChat's gateway.
        stops, stop_token_ids: what ends a turn beside the model's end-of-sequence ids.
        writes_bos: whether the rendered text carries the tokenizer's special tokens itself.
        variables: names of `chat_template_kwargs` that the template uses.
        knows_tools: whether it tells the model of tools, and shows calls and their results.
        turn_start: what it writes before an answer, without a beginning of reasoning; may be empty.
    """

    source: str
    conversation: Conversation
    stops: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    writes_bos: bool
    variables: frozenset[str]
    knows_tools: bool
    turn_start: str

    def prepared(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with the objects that the template reads in place of JSON texts.

        To be done before control tokens are looked for: a JSON text may hide them by escapes.
        """

    def render(self, messages: Sequence[Message], options: RenderOptions) -> str:
        """One prompt text of prepared messages.

        Raises:
            TriremeError: `invalid_value` when the template does not take these messages.
        """


class NamedTemplate:
    """A FastChat conversation as the model's template."""

    writes_bos = False
    variables: frozenset[str] = frozenset()
    knows_tools = False
    turn_start = ""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.source = repr(conversation.to_wire())
        self.stops = conversation.stops
        self.stop_token_ids = conversation.stop_token_ids or ()

    def prepared(self, messages: Sequence[Message]) -> Sequence[Message]:
        return messages

    def render(self, messages: Sequence[Message], options: RenderOptions) -> str:
        try:
            filled = conversations.from_messages(
                self.conversation,
                [_system(message) for message in messages],
                add_generation_prompt=options.add_generation_prompt,
            )
        except (ValueError, KeyError, AttributeError) as error:
            raise _refused(error) from error
        return conversations.render(filled, open_last=options.continue_final_message)


class JinjaTemplate:
    """The model's own (or a given) Jinja template, rendered in transformers' sandbox.

    Args:
        pretrained: the transformers tokenizer, whose special tokens the template may name.
        source: the template; None takes the tokenizer's own.

    Raises:
        ModelLoadError: when the template is not valid Jinja.
    """

    writes_bos = True
    stops: tuple[str, ...] = ()  # a model with its own template ends its turns by itself
    stop_token_ids: tuple[int, ...] = ()

    def __init__(self, pretrained: Any, source: str | None = None) -> None:
        self._pretrained = pretrained
        try:
            self.source: str = source or pretrained.get_chat_template()
            found = _undeclared(self.source)
        except Exception as error:  # Jinja's errors, and ValueError where none is the default
            raise ModelLoadError(f"the chat template is not usable: {_line(error)}") from error
        self.variables = found - RESERVED_NAMES - set(pretrained.special_tokens_map)
        self.knows_tools = "tools" in found
        self._takes_parts, self._takes_text = self._probe_content()
        self._takes_objects = False
        self._takes_objects = self.knows_tools and self._probe_arguments()
        self.turn_start = self._probe_turn_start()
        self.conversation = conversations.match_by_probe(self._probe) or conversations.plain()

    def prepared(self, messages: Sequence[Message]) -> Sequence[Message]:
        if not self._takes_objects:
            return messages
        return [
            {**message, "tool_calls": [_with_object(call) for call in message["tool_calls"]]}
            if message.get("tool_calls")
            else message
            for message in messages
        ]

    def render(self, messages: Sequence[Message], options: RenderOptions) -> str:
        try:
            return self._apply([self._fitted(message) for message in messages], options)
        except Exception as error:  # a template raises what it likes; the messages made it do so
            raise _refused(error) from error

    def _apply(self, messages: list[dict[str, Any]], options: RenderOptions) -> str:
        rendered: str = self._pretrained.apply_chat_template(
            messages,
            chat_template=self.source,
            tokenize=False,
            add_generation_prompt=options.add_generation_prompt,
            continue_final_message=options.continue_final_message,
            tools=[dict(tool) for tool in options.tools] if options.tools else None,
            **(options.kwargs or {}),
        )
        return rendered

    def _probe(self, messages: list[dict[str, str]]) -> str:
        return self._apply([self._fitted(message) for message in messages], RenderOptions())

    def _fitted(self, message: Message) -> dict[str, Any]:
        """The message with its content in the form that the template reads."""
        if "developer" not in self.source:
            message = _system(message)
        content = message.get("content")
        if isinstance(content, str) and not self._takes_text:
            content = [{"type": "text", "text": content}]
        elif isinstance(content, list) and not self._takes_parts:
            content = "\n".join(part["text"] for part in content)
        return {**message, "content": content}

    def _probe_arguments(self) -> bool:
        """Whether a call's arguments come out as JSON when they are given as an object."""
        function = {"name": "probe", "arguments": {"probe_key": "probe value"}}
        call = {"id": "call00000", "type": "function", "function": function}
        messages: list[Message] = [
            {"role": "user", "content": "probe"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        try:
            out = self._apply([self._fitted(message) for message in messages], RenderOptions())
        except Exception:  # as above
            return False
        return "'probe_key'" not in out and "probe_key" in out

    def _probe_turn_start(self) -> str:
        """What `add_generation_prompt` adds, up to where a model's reasoning begins."""
        messages = [self._fitted({"role": "user", "content": "probe"})]
        try:
            before = self._apply(messages, RenderOptions(add_generation_prompt=False))
            after = self._apply(messages, RenderOptions())
        except Exception:  # as above
            return ""
        start = after[len(before) :] if after.startswith(before) else ""
        for mark in ("<think>", "[THINK]", "<|channel|>"):
            start = start.partition(mark)[0]
        return start

    def _probe_content(self) -> tuple[bool, bool]:
        """Whether a list of parts, and whether a plain text, comes out as the text it holds."""

        def shows(content: object) -> bool:
            try:
                out = self._apply([{"role": "user", "content": content}], RenderOptions())
            except Exception:  # a template refuses with whatever it likes
                return False
            return "probe one" in out and "probe two" in out and "'type'" not in out

        parts = [{"type": "text", "text": text} for text in ("probe one", "probe two")]
        takes_parts = shows(parts)
        return takes_parts, shows("probe one probe two") or not takes_parts


def choose_template(
    pretrained: Any | None, conv_template: str | None, chat_template: Path | None
) -> ChatTemplate:
    """By precedence: a named conversation, a template file, the model's own, a plain one.

    Raises:
        ModelLoadError: when a template cannot be read.
    """
    if conv_template:
        return NamedTemplate(conversations.named(conv_template))
    if pretrained is not None and chat_template is not None:
        try:
            return JinjaTemplate(pretrained, chat_template.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ModelLoadError(f"--chat-template {chat_template}: {_line(error)}") from error
    if pretrained is not None and pretrained.chat_template:
        return JinjaTemplate(pretrained)
    return NamedTemplate(conversations.plain())


def _system(message: Message) -> Message:
    """The role `developer` is OpenAI's newer name of `system`; few templates know it."""
    return {**message, "role": "system"} if message.get("role") == "developer" else message


def _with_object(call: Any) -> Any:
    """The call with its arguments as an object, where they are one; most templates write it out."""
    function = call.get("function") if isinstance(call, Mapping) else None
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if function is None or not isinstance(arguments, str):
        return call
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return call
    return (
        {**call, "function": {**function, "arguments": value}} if isinstance(value, dict) else call
    )


def checked_kwargs(template: ChatTemplate, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The template variables of a request.

    Raises:
        TriremeError: `unknown_parameter` for a reserved or unused name, or for no scalar.
    """
    for name, value in kwargs.items():
        if name not in template.variables:
            raise _unknown(f"'{quoted(name)}' is not a variable of this model's chat template.")
        if not isinstance(value, str | int | float | bool | None):
            raise _unknown(f"'{quoted(name)}' must be a string, number, boolean or null.")
    return kwargs


def _unknown(message: str) -> TriremeError:
    return TriremeError("unknown_parameter", message, param="chat_template_kwargs")


def _refused(error: Exception) -> TriremeError:
    message = f"The model's chat template does not take these messages: {quoted(_line(error))}."
    return TriremeError("invalid_value", message, param="messages")


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def _undeclared(source: str) -> frozenset[str]:
    """The variables that a Jinja template reads."""
    from jinja2 import ext, meta, nodes
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """Lets `{% generation %}` blocks of training templates parse."""

        tags = {"generation"}  # noqa: RUF012 -- Jinja declares it so

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(extensions=[Generation, ext.loopcontrols])
    own = set(environment.globals) | {"raise_exception", "strftime_now"}
    return frozenset(meta.find_undeclared_variables(environment.parse(source)) - own)
