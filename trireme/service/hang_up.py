"""Tells whoever serves a request that its client's connection is lost.

ASGI tells it to who waits in `receive`, which takes a task beside each request. The server knows
it at once, and puts one of these into the state of each request's scope.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Final

from starlette.types import Scope

_IN_STATE: Final = "hang_up"


class HangUp:
    """Of one connection.

    Attributes:
        done: whether it is lost.
        calls: called once, when it is.
    """

    __slots__ = ("calls", "done")

    def __init__(self) -> None:
        self.done = False
        self.calls: set[Callable[[], None]] = set()

    @classmethod
    def of(cls, scope: Scope) -> HangUp:
        """Of the connection that a request came by."""
        found: HangUp = scope["state"][_IN_STATE]
        return found

    def put_into(self, state: MutableMapping[str, object]) -> None:
        """For a request that comes by this connection: `state` is that of its scope."""
        state[_IN_STATE] = self

    def tell(self) -> None:
        """The connection is lost."""
        self.done = True
        calls, self.calls = self.calls, set()
        for call in calls:
            call()
