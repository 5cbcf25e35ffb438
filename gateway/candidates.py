"""Narrows the workers of a model down to those that may have a request, and says why. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.routing import Group
from gateway.trail import NAMED_WORKERS, Out


class Sieve:
    """Candidates for one attempt.

    Attributes:
        group: those that are left.
        out: why the others are not.
    """

    __slots__ = ("group", "out")

    def __init__(self, group: Group, out: Iterable[Out] = ()) -> None:
        self.group = group
        self.out = list(out)

    def drop(self, reason: str, ids: Iterable[str], *, or_none: bool = False) -> None:
        """Leave these out; they stay when nobody would be left, unless that is meant."""
        gone = set(ids)
        if not gone:
            return
        by_id = self.group.by_id
        gone &= by_id.keys()
        if not gone or (len(gone) == len(by_id) and not or_none):
            return
        self.group = Group([one for one in self.group.workers if one.instance_id not in gone])
        self.out.append(left_out(reason, gone))

    def prefer_native(self) -> None:
        """Our own wire; where nobody speaks it all stay, so that one of them says what it lacks."""
        if self.group.all_native:
            return
        others = (one.instance_id for one in self.group.workers if one.wire != "native")
        self.drop("not native", others)


def left_out(reason: str, ids: Iterable[str]) -> Out:
    names = sorted(ids)
    return Out(reason, names[:NAMED_WORKERS], len(names))
