"""The simulated engine's tokenizer: bytes for prompts, words for completions. No dependencies."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Sequence

_NUM_BYTES = 256
END_TEXT = "<|end|>"
END_ID = _NUM_BYTES
FIRST_WORD_ID = _NUM_BYTES + 1

WORDS = tuple(
    """
    amber anchor apple april arrow autumn badge bamboo basket beacon berry birch blossom bottle
    branch breeze bridge bright bronze brook butter candle canyon carbon cedar chalk cherry circle
    cloud clover cobalt copper coral cotton cradle crystal daisy dawn delta desert diamond dolphin
    dragon drift eagle early east echo ember engine evening fabric falcon feather fern field finch
    flame flint forest fountain fox frost garden garnet gentle ginger glacier glass golden granite
    grape green grove harbor hazel heron hidden hill honey horizon indigo iron island ivory ivy
    jade jasmine journey juniper kernel kettle lagoon lake lantern lark laurel lemon light lilac
    linen lotus lunar maple marble meadow melody meteor midnight mint mirror mist moon morning moss
    mountain nectar night north oak oasis ocean olive onyx opal orange orbit orchid otter paper
    pearl pebble pepper pine planet plum pocket pond poppy prairie quartz quiet rain raven reed
    river robin rocket rose ruby saffron sail salt sand sapphire season shadow shell silver sky
    slate snow south spark spring spruce star stone storm stream summer sun swift thistle thunder
    tiger timber topaz trail tulip tundra valley velvet violet walnut water wave west willow wind
    winter wolf wonder yellow zephyr
    """.split()
)
_SPACED_WORDS = tuple(f" {word}" for word in WORDS)


class WordTokenizer:
    """Ids 0..255 are bytes, then one end token, then words with a space before them."""

    vocab_size = FIRST_WORD_ID + len(WORDS)
    bos_token_id: int | None = None
    special_tokens: tuple[str, ...] = (END_TEXT,)
    described = ""
    fingerprint = hashlib.sha256(" ".join((END_TEXT, *WORDS)).encode()).hexdigest()

    def encode(self, text: str, *, add_special_tokens: bool, as_text: bool = False) -> list[int]:
        """Ids of a rendered prompt; there is no BOS to add, so `add_special_tokens` adds none."""
        if as_text:
            return list(text.encode())
        first, *others = text.split(END_TEXT)
        ids = list(first.encode())
        for part in others:
            ids += [END_ID, *part.encode()]
        return ids

    def encode_pair(
        self, first: str, second: str, max_tokens: int | None = None
    ) -> tuple[list[int], int]:
        """Ids of two texts, one after the other; what is too long is cut at the end."""
        ids = self.encode(first, add_special_tokens=True)
        return (ids + self.encode(second, add_special_tokens=True))[:max_tokens], len(ids)

    def beginning(self, text: str, max_tokens: int) -> str:
        """A token is at least a byte, so so many characters hold so many tokens and more."""
        return text[: max_tokens * len(END_TEXT)]

    def encode_inner(self, text: str, *, as_text: bool) -> list[int]:
        """Ids of a piece of a prompt."""
        return self.encode(text, add_special_tokens=False, as_text=as_text)

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of ids; bytes that are no UTF-8 show as the replacement character."""
        raw = b"".join(self._bytes(token_id, skip_special_tokens) for token_id in ids)
        return raw.decode("utf-8", "replace")

    def stream(self, *, skip_special_tokens: bool, context: Sequence[int] = ()) -> WordStream:
        """Starts an incremental decode; what came before changes no word."""
        return WordStream(self, skip_special_tokens)

    def entry(self, token_id: int) -> str:
        """A token's text."""
        return self.token(token_id)[0]

    def token(self, token_id: int) -> tuple[str, bytes]:
        """A token's text and bytes."""
        raw = self._bytes(token_id, skip_special=False)
        return raw.decode("utf-8", "replace"), raw

    def token_id(self, entry: str) -> int | None:
        """The end token's id; words and bytes are not asked for by name."""
        return END_ID if entry == END_TEXT else None

    def _bytes(self, token_id: int, skip_special: bool) -> bytes:
        if token_id < _NUM_BYTES:
            return bytes([token_id])
        if token_id == END_ID:
            return b"" if skip_special else END_TEXT.encode()
        return b" " + WORDS[token_id - FIRST_WORD_ID].encode()


class WordStream:
    """Incremental decode of a `WordTokenizer`'s ids."""

    def __init__(self, tokenizer: WordTokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def step(self, token_id: int) -> str:
        """The text that this token completes."""
        if token_id >= FIRST_WORD_ID and not self._decoder.getstate()[0]:
            return _SPACED_WORDS[token_id - FIRST_WORD_ID]
        return self._decoder.decode(self._tokenizer._bytes(token_id, self._skip))

    def finish(self) -> str:
        """A replacement character for what is incomplete."""
        return self._decoder.decode(b"", final=True)
