"""The busiest routes' way past the router.

A request to a route of FastAPI passes a pattern match for each route, a dependency solver and two
exit stacks, which together cost more than what a gateway does with it. The endpoints that read
their body themselves need none of that, so the last middleware calls them directly. They stay
routes as well: for the documents, for other methods, and under a mount.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.errors import TriremeError
from trireme.service.catch_all import Render, fault

log = logging.getLogger(__name__)


class Shortcut:
    """Calls the endpoints of some routes by (method, path); everything else goes on.

    Args:
        tier: named in the answer when an endpoint is at fault.
        routes: their endpoints take a request alone and return a response. A path may end in one
            parameter, which matches what has no further slash.
        render: what such a request gets when it fails.
    """

    def __init__(
        self,
        app: ASGIApp,
        tier: str,
        routes: Iterable[APIRoute],
        render: Render,
    ) -> None:
        self._app = app
        self._tier = tier
        self._routes: dict[tuple[str, str], APIRoute] = {}
        self._last_parts: dict[str, str] = {}
        for route in routes:
            fixed, _, parameter = route.path.partition("{")
            self._routes.update(((method, fixed), route) for method in route.methods or ())
            if parameter:
                self._last_parts[fixed] = parameter.removesuffix("}")
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = None
        if scope["type"] == "http" and not scope.get("root_path"):
            route = self._find(scope)
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        response: Response
        try:
            response = await route.endpoint(Request(scope, receive, send))
        except TriremeError as error:
            response = self._render(scope, error)
        except ClientDisconnect:
            response = Response(status_code=499)
        except Exception:
            log.exception("request failed")
            response = self._render(scope, fault(self._tier))
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> APIRoute | None:
        method, path = scope["method"], scope["path"]
        route = self._routes.get((method, path))
        if route is not None and path not in self._last_parts:
            return route
        fixed, slash, last = path.rpartition("/")
        fixed += slash
        name = self._last_parts.get(fixed)
        if name is None or not last:
            return None
        scope["path_params"] = {name: last}
        return self._routes.get((method, fixed))


def routes_of(router: APIRouter, *paths: str) -> list[APIRoute]:
    """The routes of a router at these paths.

    Raises:
        LookupError: there is none at one of them.
    """
    found = [one for one in router.routes if isinstance(one, APIRoute) and one.path in paths]
    if missing := set(paths) - {one.path for one in found}:
        raise LookupError(f"no route at {', '.join(sorted(missing))}")
    return found
