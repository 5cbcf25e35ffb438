"""Why a peer could not be asked, in a few words for a log. Pure; knows no HTTP library."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Final

AGAIN_S: Final = 60.0
"""A trouble that lasts is told once in so many seconds."""


def reason(error: BaseException, status: int | None = None) -> str:
    """What is wrong, without addresses and class names where it is one of the usual things.

    Args:
        status: of the answer, where there was one.
    """
    if status in (401, 403):
        return "the controller wants the cluster token"
    if status is not None:
        return f"it answered with status {status}"
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "its certificate is not trusted"
        if isinstance(cause, ssl.SSLError):
            return "it does not speak TLS as we do"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, socket.gaierror):
            return "its name is not known"
        if isinstance(cause, ConnectionError):
            return "the connection broke"
        if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
            return "no answer in time"
        if isinstance(cause, ValueError):
            return "its answer cannot be read"
    return type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The first cause first: what libraries put around it says less."""
    chain: list[BaseException] = []
    left = [error]
    while left and len(chain) < 32:
        one = left.pop()
        if one in chain:
            continue
        chain.append(one)
        left += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
        left += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
    return reversed(chain)


class Trouble:
    """Decides which of the failures of one peer are told: new reasons, and one a minute."""

    def __init__(self) -> None:
        self._told = ""
        self._told_s = 0.0

    def is_news(self, why: str, now_s: float) -> bool:
        """Whether a failure for that reason is to be told; if so, it counts as told."""
        if why == self._told and now_s - self._told_s < AGAIN_S:
            return False
        self._told, self._told_s = why, now_s
        return True

    def is_over(self) -> None:
        """The peer answers: its next failure is news."""
        self._told = ""
