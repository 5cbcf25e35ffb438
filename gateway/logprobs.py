"""Log probabilities in OpenAI's two forms, and vLLM's for prompts. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Final

from protocol.generation import TokenLogprob

FLOOR = -9999.0
"""What stands for a log probability that JSON cannot carry, as OpenAI and vLLM send it."""


_UTF8: Final = codecs.getincrementaldecoder("utf-8")


def chat_logprobs(tokens: Sequence[TokenLogprob], *, as_ids: bool) -> dict[str, Any]:
    """`{"content": [...], "refusal": null}` of chat."""
    content = [
        {**_chat_token(one, as_ids), "top_logprobs": [_chat_token(t, as_ids) for t in one.top]}
        for one in tokens
    ]
    return {"content": content, "refusal": None}


class LegacyLogprobs:
    """The arrays of /v1/completions for one choice, piece by piece; it counts text offsets."""

    def __init__(self, *, as_ids: bool) -> None:
        self._as_ids = as_ids
        self._offset = 0
        self._characters = _UTF8("replace")

    def skip(self, text: str) -> None:
        """Text that comes without log probabilities."""
        self._offset += len(text)

    def arrays(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The entries of these tokens; call it with all tokens of a choice, in order."""
        offsets = []
        for one in tokens:
            offsets.append(self._offset)
            # a token may be part of a character, which counts when its last byte is there
            self._offset += len(self._characters.decode(bytes(one.bytes)))
        return {
            "text_offset": offsets,
            "token_logprobs": [None if t.logprob is None else _value(t) for t in tokens],
            "tokens": [_name(one, self._as_ids) for one in tokens],
            "top_logprobs": [self._top(one) for one in tokens],
        }

    def _top(self, token: TokenLogprob) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        best = {_name(one, self._as_ids): _value(one) for one in token.top}
        return best or {_name(token, self._as_ids): _value(token)}


def joined(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pieces of `LegacyLogprobs.arrays`, or of `chat_logprobs`, as one."""
    keys = list(pieces[0])
    return {
        key: None if pieces[0][key] is None else [item for one in pieces for item in one[key]]
        for key in keys
    }


def prompt_logprobs(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any] | None]:
    """vLLM's form: one object a prompt token, by token id; null for the first."""
    return [
        None
        if one.logprob is None
        else {
            str(t.id): {"logprob": _value(t), "rank": _rank(t, one), "decoded_token": t.token}
            for t in [*one.top, one]
        }
        for one in tokens
    ]


def _rank(token: TokenLogprob, chosen: TokenLogprob) -> int | None:
    """Place among the best, from 1; None for a token below them."""
    return next((i for i, one in enumerate(chosen.top, start=1) if one.id == token.id), None)


def _chat_token(token: TokenLogprob, as_ids: bool) -> dict[str, Any]:
    return {"token": _name(token, as_ids), "logprob": _value(token), "bytes": token.bytes}


def _name(token: TokenLogprob, as_ids: bool) -> str:
    return f"token_id:{token.id}" if as_ids else token.token


def _value(token: TokenLogprob) -> float:
    return FLOOR if token.logprob is None else max(token.logprob, FLOOR)
