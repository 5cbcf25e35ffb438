"""Which gateways follow the fleet, and how far each has read. Pure: the clock is passed in.

A poll names the gateway and the version that it has taken in, so a worker that drains can be told
when nobody is left who would still send it requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_FOLLOWERS: Final = 1024
POLL_S: Final = 5.0
"""How long a gateway's poll waits, for polls that do not say."""
KEPT_POLLS: Final = 2
"""A gateway that was silent for so many of its polls' lengths is forgotten."""
RETURN_S: Final = 2.5
"""A gateway whose poll broke off comes back within this time, if it lives; see `MAX_BACKOFF_S` of
gateway/fleet_watch.py. So long a controller that has just started vouches for nobody."""


@dataclass(slots=True)
class _Follower:
    version: int
    until: float


class Followers:
    """The gateways that asked a while ago.

    Args:
        now: seconds, monotonic, as in every later call.
    """

    def __init__(self, now: float) -> None:
        self._settled_at = now + RETURN_S
        self._by_id: dict[str, _Follower] = {}

    def heard(self, gateway: str, version: int, wait_s: float, now: float) -> None:
        """A gateway asks for what follows `version`, and means to wait so long."""
        self._by_id.pop(gateway, None)
        while len(self._by_id) >= MAX_FOLLOWERS:
            del self._by_id[next(iter(self._by_id))]
        self._by_id[gateway] = _Follower(version, now + KEPT_POLLS * max(wait_s, POLL_S))

    def broke_off(self, gateway: str, now: float) -> None:
        """Its poll ended before it was answered: it is back soon, or gone."""
        follower = self._by_id.get(gateway)
        if follower is not None:
            follower.until = min(follower.until, now + RETURN_S)

    def leave(self, gateway: str) -> None:
        """It says goodbye."""
        self._by_id.pop(gateway, None)

    def count(self, now: float) -> int:
        """How many there are."""
        self._forget(now)
        return len(self._by_id)

    def all_saw(self, version: int, now: float) -> bool:
        """Whether every one of them has taken in that version."""
        self._forget(now)
        if not self._by_id:
            return now >= self._settled_at
        return all(follower.version >= version for follower in self._by_id.values())

    def _forget(self, now: float) -> None:
        for gateway in [id_ for id_, one in self._by_id.items() if now >= one.until]:
            del self._by_id[gateway]
