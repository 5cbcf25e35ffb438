"""Bearer tokens, compared as digests in constant time; a token is never logged or echoed."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Final

KEY_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
"""What a key may be called."""
DIGEST_PREFIX: Final = "sha256:"
"""Stands before a digest in hex, in a file of keys."""


def digest(token: str) -> bytes:
    """SHA-256 of a token: what is kept and compared instead of the token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def bearer(header: str | None) -> str | None:
    """The token of an `Authorization` header, or None when it carries no bearer token."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


class TokenSet:
    """A set of accepted tokens. An empty set accepts every caller."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [digest(token) for token in tokens if token]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, token: str | None) -> bool:
        """Whether `token` is one of the set; every member is compared, in constant time."""
        if not self._digests:
            return True
        if token is None:
            return False
        found = digest(token)
        return any([hmac.compare_digest(found, known) for known in self._digests])
