"""The busiest routes' way past the router.

A request to a route of FastAPI passes a pattern match for each route, a dependency solver and two
exit stacks, which together cost more than what a gateway does with it. The endpoints that read
their body themselves need none of that, so the last middleware calls them directly. They stay
routes as well: for the documents, for other methods, and under a mount.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.errors import TriremeError


class Shortcut:
    """Calls the endpoints of some routes by (method, path); everything else goes on.

    Args:
        routes: their endpoints take a request alone and return a response.
        render: a failure as the tier's clients read it.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Iterable[APIRoute],
        render: Callable[[TriremeError], Response],
    ) -> None:
        self._app = app
        self._routes = {
            (method, route.path): route for route in routes for method in route.methods or ()
        }
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = None
        if scope["type"] == "http" and not scope.get("root_path"):
            route = self._routes.get((scope["method"], scope["path"]))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        response: Response
        try:
            response = await route.endpoint(Request(scope, receive, send))
        except TriremeError as error:
            response = self._render(error)
        except ClientDisconnect:
            response = Response(status_code=499)
        await response(scope, receive, send)


def routes_of(router: APIRouter, *paths: str) -> list[APIRoute]:
    """The routes of a router at these paths.

    Raises:
        LookupError: there is none at one of them.
    """
    found = [one for one in router.routes if isinstance(one, APIRoute) and one.path in paths]
    if missing := set(paths) - {one.path for one in found}:
        raise LookupError(f"no route at {', '.join(sorted(missing))}")
    return found
