"""Incremental decoding of token ids, on top of `tokenizers`' own stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class BackendStream:
    """A `DecodeStream` that also flushes its tail.

    All texts together equal one decode of all ids, as far as that decode only ever grows at its
    end; where a decoder rewrites earlier text, what was given stays and the common rest follows.

    Args:
        backend: a `tokenizers.Tokenizer`.
        skip_special_tokens: leave special tokens out of the text.
        context: ids that come before, for a text that continues a prompt: a SentencePiece
            decoder drops the space of a first word, which here is not the first one.
    """

    def __init__(
        self, backend: Any, skip_special_tokens: bool, context: Sequence[int] = ()
    ) -> None:
        from tokenizers.decoders import DecodeStream

        self._backend = backend
        self._skip = skip_special_tokens
        before: str = backend.decode(list(context), skip_special_tokens=skip_special_tokens)
        if before.endswith("\ufffd"):  # half a character: what follows cannot be told from it
            context, before = (), ""
        self._stream = DecodeStream(ids=list(context), skip_special_tokens=skip_special_tokens)
        self._ids = list(context)
        self._given = len(before)
        self._broken = False

    def step(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is partial."""
        self._ids.append(token_id)
        if self._broken:
            return ""
        try:
            text: str = self._stream.step(self._backend, token_id) or ""
        except Exception:  # its "invalid prefix": this decoder rewrote text; the flush has the rest
            self._broken = True
            return ""
        self._given += len(text)
        return text

    def finish(self) -> str:
        """The rest of the text, such as the marks for a character that was never completed."""
        whole: str = self._backend.decode(self._ids, skip_special_tokens=self._skip)
        rest = whole[self._given :]
        self._given = max(self._given, len(whole))
        return rest
