"""Fill-in-the-middle: a prompt from the text before and the text behind what is to be written.

Each family of models was trained with control tokens and an order of its own. The texts are the
user's: control tokens typed in them stay text. Pure; knows tokenizers, no engine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from worker.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Family:
    """Models with the same control tokens.

    Attributes:
        prefix, suffix: the token before each text. middle: the one behind both, if there is one.
        suffix_first: whether the suffix comes before the prefix.
        ends: tokens, beside those three, that end a middle where the vocabulary has them.
    """

    prefix: str
    suffix: str
    middle: str = ""
    suffix_first: bool = False
    ends: tuple[str, ...] = ()

    @property
    def controls(self) -> tuple[str, ...]:
        """The tokens that a vocabulary must have."""
        return tuple(filter(None, (self.prefix, self.suffix, self.middle)))


FAMILIES: Final = (
    # Qwen2.5-Coder, CodeGemma
    Family(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ends=(
            "<|fim_pad|>",
            "<|repo_name|>",
            "<|file_sep|>",
            "<|file_separator|>",
            "<|endoftext|>",
        ),
    ),
    # StarCoder, StarCoder2, Granite Code, Stable Code
    Family(
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        ends=("<fim_pad>", "<repo_name>", "<file_sep>", "<|endoftext|>"),
    ),
    # SantaCoder
    Family("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ends=("<fim-pad>", "<|endoftext|>")),
    # Code Llama
    Family("▁<PRE>", "▁<SUF>", "▁<MID>", ends=("▁<EOT>",)),
    # DeepSeek-Coder, DeepSeek-V2 and later
    Family("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # its own spelling
    # Codestral: no token behind the prefix, which is simply continued
    Family("[PREFIX]", "[SUFFIX]", suffix_first=True),
)


@dataclass(frozen=True, slots=True)
class Gap:
    """A prompt whose continuation fills a gap.

    Attributes:
        ends: ids that end the continuation, beside the model's own.
    """

    ids: list[int]
    ends: tuple[int, ...]


def fills_gaps(tokenizer: Tokenizer) -> bool:
    """Whether a model with this vocabulary was trained for it."""
    return any(_knows(tokenizer, family) for family in FAMILIES)


def gap(
    tokenizer: Tokenizer, prefix: str | Sequence[int], suffix: str, *, add_special_tokens: bool
) -> Gap | None:
    """The prompt for a gap between `prefix` and `suffix`; None where the tokenizer has no tokens
    for it.

    Args:
        prefix: a text, or ids; a start token at their beginning stays in front of all.
        add_special_tokens: whether a text gets the tokenizer's start token.
    """
    family = next((one for one in FAMILIES if _knows(tokenizer, one)), None)
    if family is None:
        return None
    if isinstance(prefix, str):
        own = tokenizer.encode("", add_special_tokens=add_special_tokens)
        lead = [one for one in own if one == tokenizer.bos_token_id]
        first, *others = _pieces(prefix, family)
        before = tokenizer.encode(first, add_special_tokens=False, as_text=True)
        before += _inner(tokenizer, others)
    else:
        starts = bool(prefix) and prefix[0] == tokenizer.bos_token_id
        lead, before = list(prefix[:starts]), list(prefix[starts:])
    parts = [
        [*_ids(tokenizer, [family.prefix]), *before],
        # no SentencePiece space before it, as the models were trained
        [*_ids(tokenizer, [family.suffix]), *_inner(tokenizer, _pieces(suffix, family))],
    ]
    if family.suffix_first:
        parts.reverse()
    ids = [*lead, *parts[0], *parts[1], *_ids(tokenizer, [family.middle])]
    return Gap(ids, tuple(_ids(tokenizer, (*family.controls, *family.ends))))


def _knows(tokenizer: Tokenizer, family: Family) -> bool:
    return all(tokenizer.token_id(text) is not None for text in family.controls)


def _ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Ids of those tokens that the vocabulary has."""
    found = (tokenizer.token_id(text) for text in texts if text)
    return [token_id for token_id in found if token_id is not None]


def _inner(tokenizer: Tokenizer, pieces: Sequence[str]) -> list[int]:
    return [one for piece in pieces for one in tokenizer.encode_inner(piece, as_text=True)]


def _pieces(text: str, family: Family) -> list[str]:
    """`text`, cut inside each control token typed in it: some tokenizers do not call theirs special
    and would find them in any text."""
    typed = "|".join(map(re.escape, (*family.controls, *family.ends)))
    cuts = [found.start() + 1 for found in re.finditer(typed, text)]
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
