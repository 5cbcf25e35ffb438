"""Holds a choice to a grammar: which tokens may come next, and which must. No torch.

The simulated engine runs without llguidance and numpy, so they are imported where they are used.
The parser is llguidance's; a grammar is its own JSON text, made by `worker/text/structure.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_KEPT: Final = 64


class GrammarError(ValueError):
    """A grammar that cannot be used; the message is for people."""


class Matcher:
    """Where in its grammar a choice is.

    Attributes:
        error: why it can go on no more, empty while it can: the parser reached one of its limits.
    """

    def __init__(self, parser: Any, eos_token_ids: frozenset[int]) -> None:
        self._parser = parser
        self._eos_token_ids = eos_token_ids
        self.error = ""

    def behind(self, ids: Sequence[int]) -> Matcher:
        """Another choice, so many tokens further on."""
        made = Matcher(self._parser.deep_copy(), self._eos_token_ids)
        if ids:
            made._parser.consume_tokens(list(ids))
            made._failed()
        return made

    @property
    def is_over(self) -> bool:
        """Whether the grammar is satisfied and nothing more may come."""
        return bool(self._parser.is_stopped()) and not self.error

    def ends(self, token_id: int) -> bool:
        """Whether this token is the end of a text, and no part of it."""
        return token_id in self._eos_token_ids

    def allowed(self) -> NDArray[np.bool_] | None:
        """Which tokens may come next, [vocabulary]; end-of-sequence where the text may end.

        None once there is an error.
        """
        import numpy as np

        bits = np.frombuffer(self._parser.compute_bitmask(), np.uint8)
        if self._failed():
            return None
        return np.unpackbits(bits, bitorder="little").view(np.bool_)

    def take(self, token_id: int, *, fast: bool) -> list[int]:
        """Go on by a token; the tokens that must follow, taken too, none unless `fast`."""
        self._parser.consume_token(token_id)
        forced: list[int] = [] if self._failed() or not fast else self._parser.compute_ff_tokens()
        if forced:
            self._parser.consume_tokens(forced)
            self._failed()
        return forced

    def _failed(self) -> bool:
        if not self.error and self._parser.is_error():
            self.error = reason_of(self._parser)
        return bool(self.error)


def reason_of(parser: Any) -> str:
    """Its error as one line."""
    return " ".join(parser.get_error().split())[:300] or "the parser stopped"


class Grammars:
    """Begins grammars over the vocabulary of one tokenizer.

    Args:
        tokenizer: a `tokenizer.json`, as text.
        vocab_size: columns of the model's logits.
        eos_token_ids: tokens that end a text.

    Raises:
        GrammarError: the tokenizer is none that grammars can be held to.
    """

    def __init__(self, tokenizer: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        from llguidance import LLTokenizer

        self.eos_token_ids = frozenset(eos_token_ids)
        try:
            self.vocabulary = LLTokenizer(
                tokenizer, n_vocab=vocab_size, eos_token=list(eos_token_ids) or None
            )
        except Exception as error:  # it is written in Rust and raises what it likes
            raise GrammarError(f"no grammar fits this tokenizer: {error}") from error
        self._begun: OrderedDict[str, Any] = OrderedDict()

    def begin(self, grammar: str) -> Matcher:
        """A choice at the start of a grammar.

        Raises:
            GrammarError: with the reason.
        """
        from llguidance import LLMatcher

        if grammar not in self._begun:
            parser = LLMatcher(self.vocabulary, grammar, log_level=0)
            if parser.is_error():
                raise GrammarError(reason_of(parser))
            self._begun[grammar] = parser
        self._begun.move_to_end(grammar)
        if len(self._begun) > _KEPT:
            self._begun.popitem(last=False)
        return Matcher(self._begun[grammar].deep_copy(), self.eos_token_ids)
