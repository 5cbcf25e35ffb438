"""From a request's input to prompt ids: the tokenizer and the template together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocol.errors import TriremeError, quoted
from worker.sentence_files import SentenceFiles, read_sentence_files
from worker.text import formats
from worker.text.controls import Piece, TooManyMarks, disguise, surrogate_at
from worker.text.fim import gap
from worker.text.reading import AnswerFormat
from worker.text.templates import ChatTemplate, RenderOptions, checked_kwargs, choose_template
from worker.text.tokenizer import HFTokenizer, Tokenizer, load_pretrained
from worker.text.tools import with_tools, without_calls

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_CONTEXT_IDS = 6
_SWITCHES = ("enable_thinking", "thinking")


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt ready for the engine.

    Attributes:
        param: the request's field it came from, for error messages.
        text: the prompt for people.
        context: the last ids when the completion continues a text, else empty (a new turn).
        ends: ids that end the completion, beside the model's own.
    """

    ids: list[int]
    text: str
    param: str
    context: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class TextModel:
    """All that the worker knows of a model's texts.

    Attributes:
        format: how its answers are read; None leaves them as they are.
        sentence: how the model wants texts that are to be embedded.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    format: AnswerFormat | None = None
    sentence: SentenceFiles = field(default_factory=SentenceFiles)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        described = self.format.described if self.format else ""
        parts = (self.tokenizer.fingerprint, self.template.source, described, str(self.sentence))
        joined = "\n".join(parts)
        object.__setattr__(self, "fingerprint", hashlib.sha256(joined.encode()).hexdigest())

    def encode_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: RenderOptions,
        *,
        add_special_tokens: bool = False,
    ) -> EncodedPrompt:
        """Render and tokenize; control tokens typed in the messages stay text.

        Args:
            add_special_tokens: let the tokenizer add its own also where the template writes them.

        Raises:
            TriremeError: 400, naming the message at fault.
        """
        _check_messages(messages, options)
        kwargs = checked_kwargs(self.template, options.kwargs or {})
        tools = list(options.tools or ())
        if not self.template.knows_tools:
            messages = without_calls(messages)
            messages, tools = with_tools(messages, tools) if tools else messages, []
        messages = self.template.prepared(messages)
        try:
            mask = disguise([messages, kwargs, tools], self.tokenizer.special_tokens)
        except TooManyMarks as error:
            message = "The messages have special tokens and too many private-use characters."
            raise TriremeError("invalid_value", message, param="messages") from error
        rendered = self.template.render(
            mask.of(messages),
            RenderOptions(
                options.add_generation_prompt,
                options.continue_final_message,
                mask.of(kwargs),
                mask.of(tools),
            ),
        )
        ids = self._encode_pieces(
            mask.pieces(rendered),
            add_special_tokens=add_special_tokens or not self.template.writes_bos,
        )
        context = tuple(ids[-_CONTEXT_IDS:]) if options.continue_final_message else ()
        return EncodedPrompt(ids, mask.lifted(rendered), "messages", context)

    def _encode_pieces(self, pieces: Sequence[Piece], *, add_special_tokens: bool) -> list[int]:
        """The first piece starts the text; with a control token there, an empty one does."""
        lead = pieces[0].text if pieces and not pieces[0].as_text else ""
        ids = self.tokenizer.encode(lead, add_special_tokens=add_special_tokens)
        for piece in pieces[1 if lead else 0 :]:
            ids += self.tokenizer.encode_inner(piece.text, as_text=piece.as_text)
        return ids

    def encode_prompt(self, text: str, *, add_special_tokens: bool = True) -> EncodedPrompt:
        """Tokenize a rendered prompt: special tokens in it are special tokens.

        Raises:
            TriremeError: 400 for a lone surrogate, or for no token at all.
        """
        if surrogate_at(text, "prompt"):
            raise _surrogate("prompt")
        ids = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        if not ids:
            raise TriremeError(
                "invalid_value",
                "The prompt is empty, and this model has no start token.",
                param="prompt",
            )
        return EncodedPrompt(ids, text, "prompt", tuple(ids[-_CONTEXT_IDS:]))

    def encode_gap(
        self, prefix: str | list[int], suffix: str, *, add_special_tokens: bool = True
    ) -> EncodedPrompt:
        """A prompt for the text between `prefix` and `suffix`, in which nothing is special.

        Raises:
            TriremeError: 400 for a lone surrogate, or for a model without tokens for this.
        """
        for name, text in (("prompt", prefix), ("suffix", suffix)):
            if surrogate_at(text, name):
                raise _surrogate(name)
        found = gap(self.tokenizer, prefix, suffix, add_special_tokens=add_special_tokens)
        if found is None:
            message = "This model has no tokens for fill-in-the-middle, which a suffix needs."
            raise TriremeError("unsupported_by_model", message, param="suffix")
        text = self.tokenizer.decode(found.ids, skip_special_tokens=False)
        context = tuple(found.ids[-_CONTEXT_IDS:])
        return EncodedPrompt(found.ids, text, "prompt", context, found.ends)

    def encode_ids(self, ids: list[int], vocab_size: int) -> EncodedPrompt:
        """Take token ids as they are.

        Raises:
            TriremeError: 400 for none, or for an id that is not in the vocabulary.
        """
        if not ids:
            raise TriremeError("empty_array", "The prompt holds no token.", param="prompt")
        if (largest := max(ids)) >= vocab_size:
            message = f"Token id {largest} is not below the vocabulary size {vocab_size}."
            raise TriremeError("invalid_value", message, param="prompt")
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        return EncodedPrompt(ids, text, "prompt", tuple(ids[-_CONTEXT_IDS:]))


def load_text_model(
    path: str,
    *,
    revision: str | None,
    trust_remote_code: bool,
    conv_template: str | None,
    chat_template: Path | None,
    tool_call_parser: str = "auto",
    reasoning_parser: str = "auto",
) -> TextModel:
    """The tokenizer, template and answer format of a model folder or hub id; takes seconds.

    Raises:
        ModelLoadError: with a one-line reason.
    """
    from worker.text.response import choose_format

    pretrained = load_pretrained(path, revision, trust_remote_code)
    template = choose_template(pretrained, conv_template, chat_template)
    tokenizer = HFTokenizer(pretrained)
    own = getattr(pretrained, "response_template", None)
    found = choose_format(tokenizer, template, own, tool_call_parser, reasoning_parser)
    return TextModel(tokenizer, template, found, read_sentence_files(path, revision))


def effort_switch(text: TextModel) -> str | None:
    """The variable by which this model's template is told how long to think, if it has one."""
    names = ("reasoning_effort", *_SWITCHES)
    return next((name for name in names if name in text.template.variables), None)


def always_thinks(text: TextModel) -> bool:
    """Whether this model thinks before every answer and cannot be told not to."""
    return _reasons(text) and effort_switch(text) is None


def effort_kwargs(text: TextModel, effort: str | None) -> Mapping[str, Any]:
    """How this model's template is told how long to think.

    Raises:
        TriremeError: `unsupported_by_model` when the model has no such switch.
    """
    if effort is None:
        return {}
    if switch := effort_switch(text):
        return {switch: effort if switch == "reasoning_effort" else effort != "none"}
    thinks = always_thinks(text)
    if effort == "none" and not thinks:
        return {}
    why = "always thinks" if thinks else "does not think before it answers"
    message = f"This model {why}: its reasoning_effort cannot be '{quoted(effort)}'."
    raise TriremeError("unsupported_by_model", message, param="reasoning_effort")


def thinking_kwargs(text: TextModel, thinking: bool | None) -> Mapping[str, Any]:
    """How this model's template is told whether to think; what the model does anyway needs nothing.

    Raises:
        TriremeError: `unsupported_by_model` when it does the other always.
    """
    if thinking is None:
        return {}
    for switch in _SWITCHES:
        if switch in text.template.variables:
            return {switch: thinking}
    if thinking == _reasons(text):
        return {}
    why = "does not think before it answers" if thinking else "always thinks"
    raise TriremeError("unsupported_by_model", f"This model {why}.", param="thinking")


def _reasons(text: TextModel) -> bool:
    return text.format is not None and text.format.reasoning_format != formats.NONE


def _check_messages(messages: Sequence[Mapping[str, Any]], options: RenderOptions) -> None:
    if not messages:
        raise TriremeError("empty_array", "messages is empty.", param="messages")
    if options.continue_final_message and options.add_generation_prompt:
        raise TriremeError(
            "invalid_value",
            "continue_final_message and add_generation_prompt exclude each other.",
            param="continue_final_message",
        )
    for i, message in enumerate(messages):
        at = f"messages[{i}]"
        if bad := surrogate_at(message, at):
            raise _surrogate(bad)
        role = message.get("role")
        if role not in _ROLES:
            raise TriremeError(
                "invalid_value", f"The role '{quoted(role)}' is not known.", param=f"{at}.role"
            )
        _check_content(message.get("content"), f"{at}.content")


def _check_content(content: Any, at: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise TriremeError("invalid_type", "Content is a text or a list of parts.", param=at)
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            message = f"This model takes parts of type text only, not '{quoted(kind)}'."
            raise TriremeError("invalid_value", message, param=f"{at}[{i}].type")
        if not isinstance(part.get("text"), str):
            raise TriremeError("invalid_type", "A text part has a text.", param=f"{at}[{i}].text")


def _surrogate(param: str) -> TriremeError:
    # the surrogate itself is not echoed: it cannot be encoded
    return TriremeError("invalid_value", "The text holds a lone surrogate.", param=param)
