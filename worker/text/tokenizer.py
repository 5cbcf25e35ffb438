"""What the worker needs of a tokenizer, and the one that wraps a Hugging Face fast tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

from worker.engine.protocol import ModelLoadError

_LONG_CHARS = 8192


class TokenStream(Protocol):
    """Ids in, text out; a token that ends in the middle of a character gives its text later."""

    def step(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is partial."""

    def finish(self) -> str:
        """The rest, so that all texts together are one decode of all ids."""


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
        vocab_size: ids of the tokenizer are below it (the model may have more).
        bos_token_id: the beginning-of-sequence id, when it has one.
        special_tokens: the texts of its special tokens.
        described: a `tokenizer.json`, as text; empty where there is none.
        fingerprint: sha256 over all that determines ids, in hex.
    """

    vocab_size: int
    bos_token_id: int | None
    special_tokens: tuple[str, ...]
    described: str
    fingerprint: str

    def encode(self, text: str, *, add_special_tokens: bool, as_text: bool = False) -> list[int]:
        """Ids of a rendered prompt: special tokens in it are special tokens.

        Args:
            add_special_tokens: let the tokenizer add its own (BOS); never a second BOS.
            as_text: special tokens in it stay plain text.
        """

    def encode_pair(
        self, first: str, second: str, max_tokens: int | None = None
    ) -> tuple[list[int], int]:
        """Ids of two texts as one input, and how many of these belong to the first.

        The special tokens are those that the tokenizer puts around and between a pair. Where it
        does not tell the two apart, all ids belong to the first.

        Args:
            max_tokens: cut the longer text, at its end, until there are no more than these.
        """

    def beginning(self, text: str, max_tokens: int) -> str:
        """As much of a text as its first `max_tokens` tokens come from."""

    def encode_inner(self, text: str, *, as_text: bool) -> list[int]:
        """Ids of a piece from the middle of a prompt; nothing is added before or after.

        Args:
            as_text: special tokens in it stay plain text.
        """

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of ids."""

    def stream(self, *, skip_special_tokens: bool, context: Sequence[int] = ()) -> TokenStream:
        """Starts an incremental decode of what follows the ids of `context`."""

    def entry(self, token_id: int) -> str:
        """How the vocabulary spells a token; empty for an id that it does not have."""

    def token(self, token_id: int) -> tuple[str, bytes]:
        """A token's text for people, and its exact UTF-8 bytes (perhaps part of a character)."""

    def token_id(self, entry: str) -> int | None:
        """The id of an entry of the vocabulary, spelled as it stands there; None for no entry."""


class HFTokenizer:
    """A fast tokenizer of transformers.

    Args:
        pretrained: a `PreTrainedTokenizerFast`; its backend is used from then on by this object
            alone (its truncation and padding are switched off).

    Raises:
        ModelLoadError: when it is not a fast tokenizer.
    """

    def __init__(self, pretrained: Any) -> None:
        from tokenizers import Tokenizer as Backend

        backend = getattr(pretrained, "backend_tokenizer", None)
        if not isinstance(backend, Backend):
            raise ModelLoadError(
                f"the tokenizer {type(pretrained).__name__} is not a fast one (no tokenizer.json)"
            )
        backend.no_truncation()
        backend.no_padding()
        described = backend.to_str()
        self.described = described
        self._backend: Any = backend
        self._plain: Any = Backend.from_str(described)
        self._plain.encode_special_tokens = True
        self._cutting: Any = None
        self._tells_apart = "token_type_ids" in pretrained.model_input_names
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.bos_token_id: int | None = pretrained.bos_token_id
        added: dict[int, Any] = backend.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self.special_tokens = tuple(token.content for token in added.values() if token.special)
        self._token_bytes = _byte_reader(json.loads(described).get("decoder"))
        self._newline = {plain: self._ids("\n", plain=plain) for plain in (False, True)}

    def _ids(
        self, text: str, *, plain: bool = False, add_special_tokens: bool = False
    ) -> list[int]:
        backend = self._plain if plain else self._backend
        ids: list[int]
        if len(text) > _LONG_CHARS:
            # a batch lets go of the interpreter's lock; a text alone would hold up every thread
            [found] = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            ids = found.ids
        else:
            ids = backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode(self, text: str, *, add_special_tokens: bool, as_text: bool = False) -> list[int]:
        ids = self._ids(text, plain=as_text, add_special_tokens=add_special_tokens)
        bos = self.bos_token_id
        if add_special_tokens and bos is not None and ids[:2] == [bos, bos]:
            return ids[1:]
        return ids

    def encode_pair(
        self, first: str, second: str, max_tokens: int | None = None
    ) -> tuple[list[int], int]:
        pair = self._backend.encode(first, second)
        if max_tokens is not None and len(pair.ids) > max_tokens:
            pair = self._cutting_backend(max_tokens).encode(first, second)
        types: list[int] = pair.type_ids if self._tells_apart else []
        return pair.ids, types.index(1) if 1 in types else len(pair.ids)

    def beginning(self, text: str, max_tokens: int) -> str:
        offsets = self._backend.encode(text, add_special_tokens=False).offsets
        return text if len(offsets) <= max_tokens else text[: offsets[max_tokens - 1][1]]

    def _cutting_backend(self, max_tokens: int) -> Any:
        """A backend that truncates; made when it is first needed, since its vocabulary is large."""
        if self._cutting is None or self._cutting.truncation["max_length"] != max_tokens:
            cutting = type(self._backend).from_str(self.described)
            cutting.enable_truncation(max_tokens)
            self._cutting = cutting
        return self._cutting

    def encode_inner(self, text: str, *, as_text: bool) -> list[int]:
        # Behind a newline, so that a SentencePiece model adds no space as at the start of a text;
        # the same trick as in transformers' `sanitize_control_tokens`.
        newline = self._newline[as_text]
        ids = self._ids("\n" + text, plain=as_text)
        if newline and ids[: len(newline)] == newline:
            return ids[len(newline) :]
        return self._ids(text, plain=as_text)

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def stream(self, *, skip_special_tokens: bool, context: Sequence[int] = ()) -> TokenStream:
        from worker.text.detokenizer import BackendStream

        return BackendStream(self._backend, skip_special_tokens, context)

    def entry(self, token_id: int) -> str:
        return self._backend.id_to_token(token_id) or ""

    def token_id(self, entry: str) -> int | None:
        found: int | None = self._backend.token_to_id(entry)
        return found

    def token(self, token_id: int) -> tuple[str, bytes]:
        if token_id in self._added:
            text = self._added[token_id]
            return text, text.encode("utf-8", "replace")
        piece: str | None = self._backend.id_to_token(token_id)
        if piece is None:  # a row of the model's padded vocabulary
            return "", b""
        raw = self._token_bytes(piece)
        if raw is None:
            text = self.decode([token_id], skip_special_tokens=False)
            return text, text.encode()
        return raw.decode("utf-8", "replace"), raw


def load_pretrained(path: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The transformers tokenizer of a model folder or hub id.

    Raises:
        ModelLoadError: with a one-line reason.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # transformers raises whatever its parsers raise
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        hint = (
            " (remote code runs only with --trust-remote-code)"
            if "trust_remote_code" in str(error)
            else ""
        )
        raise ModelLoadError(
            f"no tokenizer can be loaded from {path}: {line[:300]}{hint}"
        ) from error


_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_reader(decoder: Any) -> Any:
    """From a vocabulary entry to its bytes, by the kind of the tokenizer's decoder."""
    described = json.dumps(decoder)
    if '"ByteLevel"' in described:
        table = {char: byte for byte, char in _gpt2_bytes().items()}

        def byte_level(piece: str) -> bytes | None:
            try:
                return bytes(table[char] for char in piece)
            except KeyError:
                return None

        return byte_level
    if "▁" in described or '"Metaspace"' in described or '"ByteFallback"' in described:

        def sentence_piece(piece: str) -> bytes | None:
            byte = _BYTE_FALLBACK.fullmatch(piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()

        return sentence_piece
    return lambda piece: None


def _gpt2_bytes() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }
