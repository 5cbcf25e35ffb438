"""The way in for operators: `/debug/` needs the cluster token, everything else an API key.

With neither a cluster token nor API keys these routes answer this machine alone: a peer on loopback
that is no proxy and no web page. A gateway with API keys may stand behind a proxy that does not say
so, so there they need a cluster token. All ways deny by default.
"""

from __future__ import annotations

from typing import Final

from starlette.responses import Response
from starlette.types import Scope

from gateway.edge import Check
from gateway.errors import error_response
from protocol.errors import TriremeError
from trireme.service.auth import TokenSet, bearer
from trireme.service.settings import is_loopback

OPERATORS: Final = "/debug/"

_BY_PROXY: Final = frozenset(
    {b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"origin"}
)
"""Headers of a proxy, whose peer is not the one who asks, and of a web page."""
_HERE: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class TwoDoors:
    """A check that asks one guard about operators' paths, another one about all others."""

    def __init__(self, clients: Check, operators: Check) -> None:
        self._clients = clients
        self._operators = operators

    def __call__(self, scope: Scope) -> Response | None:
        operator = scope["path"].startswith(OPERATORS)
        return (self._operators if operator else self._clients)(scope)


class OperatorGuard:
    """A check that lets those in that show the cluster token.

    Args:
        tokens: empty lets this machine in instead, as long as there are no API keys.
        has_keys: whether there are any.
    """

    def __init__(self, tokens: TokenSet, has_keys: bool) -> None:
        self._tokens = tokens
        self._has_keys = has_keys

    def __call__(self, scope: Scope) -> Response | None:
        refused = self._refusal(scope)
        return None if refused is None else error_response(refused, scope=scope)

    def _refusal(self, scope: Scope) -> TriremeError | None:
        headers = dict(scope["headers"])
        if not self._tokens:
            if self._has_keys:
                message = "With API keys this route needs a cluster token: see --cluster-token."
                return TriremeError("missing_api_key", message)
            if _is_local(scope, headers):
                return None
            message = "Without a cluster token this route answers its own machine only."
            return TriremeError("missing_api_key", message)
        token = bearer(headers.get(b"authorization", b"").decode("utf-8", "surrogateescape"))
        if token is None:
            return TriremeError("missing_api_key", "Give the cluster token as a bearer token.")
        if not self._tokens.accepts(token):
            return TriremeError("invalid_api_key", "The cluster token is wrong.")
        return None


def _is_local(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """The host's name is looked at because a web page may have its own name lead here."""
    peer = (scope.get("client") or ("",))[0]
    host = headers.get(b"host", b"").decode("latin-1").rpartition(":")
    name = host[0] if host[2].isdecimal() else host[0] + host[1] + host[2]
    return is_loopback(peer) and name in _HERE and not headers.keys() & _BY_PROXY
