"""How families of models mark reasoning and tool calls in what they write.

Each format is fields of a response template, the description that transformers' `ResponseParser`
reads: a field opens and closes at a text or a pattern, and its body is text or JSON. Fields named
`content…` are the answer, `reasoning_content` what was thought, `tool_calls…` calls, `unread` is
left out. The formats are those of the families' own chat templates.

A pattern must not end in an optional text or the end of all text: the parser would take the shorter
match as soon as it sees it. And every repetition has a bound, as the parser searches again with
every token: a model that writes blanks without end would else cost their square.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

Fields = Mapping[str, Mapping[str, Any]]


def _table(formats: dict[str, Fields]) -> Mapping[str, Fields]:
    return MappingProxyType(formats)


def _calls(**anchors: Any) -> dict[str, Any]:
    """A field whose every match is one call, or a list of some, in JSON."""
    return {"content": "json", **anchors}


def _named_calls(content: str = "json", **anchors: Any) -> dict[str, Any]:
    """A field whose opening pattern tells the name and whose body is the arguments."""
    function = {"name": "{name}", "arguments": "{content}"}
    return {
        "content": content,
        "transform": {"type": "function", "function": function},
        **anchors,
    }


_CHANNEL: Final = r"(?:<\|start\|>assistant)?"
_BLANKS: Final = r"\s{0,16}"
_WORD: Final = r"\w{1,64}"
_CONSTRAINT: Final = r"(?:(?:<\|constrain\|>)?\s{0,16}\w{1,64}\s{0,16})?"
_TO: Final = r"\s{0,16}to=functions\.(?P<name>[\w.-]{1,64})\s{0,16}"

TOOL_CALLS: Final = _table(
    {
        # Hermes, Qwen 2.5 and 3, Granite 4, SmolLM 3
        "hermes": {
            "tool_calls": _calls(
                open_pattern=r"\s{0,16}<tool_call>", close_pattern=r"</tool_call>\s{0,16}"
            )
        },
        "qwen3_coder": {
            "tool_calls": _named_calls(
                "xml-inline",
                open_pattern=r"\s{0,16}<tool_call>\s{0,16}<function=(?P<name>[^>\n]{1,64})>",
                close_pattern=r"</function>\s{0,16}</tool_call>\s{0,16}",
                content_args={
                    "tag_pattern": (
                        r"<parameter=(?P<key>[^>\n]{1,64})>\n?"
                        r"(?P<value>(?:(?!\n?</parameter>|<parameter=).)*+)\n?</parameter>"
                    )
                },
            )
        },
        # Llama 3.1 and later: the whole answer is a call, or several between semicolons
        "llama3_json": {
            "tool_calls": _calls(
                open_pattern=(
                    r"(?:\A\s{0,16}|\s{0,16}<\|python_tag\|>\s{0,16}|(?<=\}\s{0,16};\s{0,16}))"
                    r'(?=\{\s{0,16}"(?:name|type|parameters|function)")'
                ),
                close_pattern=r"\s{0,16};\s{0,16}(?=\{)|<\|eom_id\|>|<\|eot_id\|>",
            )
        },
        # Mistral: a list of calls, in later versions each call by itself
        "mistral": {
            "tool_calls": _calls(
                open_pattern=r"\s{0,16}\[TOOL_CALLS\]\s{0,16}(?=\[)",
                close="</s>",
            ),
            "tool_calls_named": _named_calls(
                open_pattern=(
                    r"(?:\s{0,16}\[TOOL_CALLS\]|(?<=\[TOOL_CALLS\]))\s{0,16}"
                    r"(?P<name>[\w-]{1,64})\s{0,16}"
                    r"(?:\[CALL_ID\]\s{0,16}\w{1,64}\s{0,16})?(?:\[ARGS\]\s{0,16}|(?=\{))"
                ),
                close=["[TOOL_CALLS]", "</s>"],
            ),
        },
        "deepseek": {
            "tool_calls": _named_calls(
                open_pattern=(
                    r"\s{0,16}(?:<｜tool▁calls▁begin｜>)?\s{0,16}<｜tool▁call▁begin｜>"
                    r"(?:function<｜tool▁sep｜>(?P<name>[^\n<]{1,64})\n```json\n"
                    r"|(?!function<)(?P<name>[^\n<]{1,64})<｜tool▁sep｜>)"
                ),
                close_pattern=r"(?:\n```)?\s{0,16}<｜tool▁call▁end｜>",
            ),
            "unread": {
                "open_pattern": r"\s{0,16}<｜tool▁calls▁end｜>",
                "close_pattern": r"(?=.)",
            },
        },
        "granite": {
            "tool_calls": _calls(
                open_pattern=r"\s{0,16}<\|tool_call\|>\s{0,16}|\s{0,16}<tool_call>\s{0,16}(?=\[)",
                close="<|end_of_text|>",
            )
        },
        "phi4": {
            "tool_calls": _calls(
                open_pattern=r"\s{0,16}<\|tool_call\|>\s{0,16}|\s{0,16}functools\s{0,16}(?=\[)",
                close=["<|/tool_call|>", "<|end|>"],
            )
        },
        # gpt-oss; the recipient stands before the channel or behind it
        "harmony": {
            "tool_calls": _named_calls(
                open_pattern=(
                    rf"{_CHANNEL}(?:{_TO}<\|channel\|>{_WORD}{_BLANKS}|<\|channel\|>{_WORD}{_TO})"
                    rf"{_CONSTRAINT}<\|message\|>"
                ),
                close=["<|call|>", "<|end|>"],
            )
        },
    }
)

REASONING: Final = _table(
    {
        # DeepSeek R1, Qwen 3, SmolLM 3 and most others
        "think": {
            "reasoning_content": {
                "open": "<think>",
                "close": "</think>",
            }
        },
        "mistral": {
            "reasoning_content": {
                "open": "[THINK]",
                "close": "[/THINK]",
            }
        },
        "harmony": {
            "reasoning_content": {
                "open_pattern": rf"{_CHANNEL}<\|channel\|>analysis{_BLANKS}<\|message\|>",
                "close": "<|end|>",
            },
            "content_final": {
                "open_pattern": (
                    rf"{_CHANNEL}<\|channel\|>(?:final|commentary){_BLANKS}{_CONSTRAINT}<\|message\|>"
                ),
                "close": ["<|end|>", "<|return|>"],
            },
        },
    }
)

NONE: Final = "none"

_TOOL_MARKS: Final = (
    ("harmony", "<|channel|>"),
    ("deepseek", "<｜tool▁call▁begin｜>"),
    ("mistral", "[TOOL_CALLS]"),
    ("llama3_json", "<|python_tag|>"),
    ("llama3_json", '{"name": function name, "parameters":'),
    ("qwen3_coder", "<function="),
    ("hermes", "<tool_call>"),
    ("phi4", "<|tool|>"),
    ("phi4", "functools"),
    ("granite", "<|tool_call|>"),
)
_REASONING_MARKS: Final = (
    ("harmony", "<|channel|>"),
    ("mistral", "[THINK]"),
    ("think", "<think>"),
    ("think", "</think>"),
)


def tool_format_of(template: str) -> str:
    """The format of calls that a chat template's source shows, `none` when it shows none."""
    return next((name for name, mark in _TOOL_MARKS if mark in template), NONE)


def reasoning_format_of(template: str, special_tokens: tuple[str, ...]) -> str:
    """The format of reasoning that a template or the tokens of a model show, or `none`."""
    shown = (template, *special_tokens)
    return next(
        (name for name, mark in _REASONING_MARKS if any(mark in text for text in shown)), NONE
    )
