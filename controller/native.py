"""Native fleet routes, as `protocol/fleet.py` documents them, and one for people.

GET /fleet/workers   what `GET /fleet` says of each worker, with its ages in seconds
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Final

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from controller.feed import MAX_WAIT_S
from controller.fleet import Fleet
from controller.registry import Entry, Verdict
from protocol.errors import TriremeError
from protocol.fleet import FleetQuery, FleetSnapshot, HeartbeatAnswer, WorkerRecord
from trireme.service.control import parse_body, parse_query
from trireme.service.openapi import body_of, query_of
from trireme.service.streaming import Leash

FLEET: Final = "/fleet"
WORKERS: Final = "/fleet/workers/"
_IN_PATH: Final = {
    "parameters": [
        {
            "name": "instance_id",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": 256},
        }
    ]
}
"""Said by hand, because that route takes a request alone, to be reached past the router."""

InstanceId = Annotated[str, Path(min_length=1, max_length=256)]


def native_router(fleet: Fleet) -> APIRouter:
    """PUT and DELETE of worker records, the snapshot with long poll."""
    router = APIRouter(tags=["fleet"])

    @router.put(
        f"{WORKERS}{{instance_id}}",
        response_model=HeartbeatAnswer,
        openapi_extra=body_of(WorkerRecord) | _IN_PATH,
        responses={409: {"model": HeartbeatAnswer, "description": "another holds the address"}},
    )
    async def put_worker(request: Request) -> Response:
        record = await parse_body(request, WorkerRecord)
        if record.instance_id != request.path_params["instance_id"]:
            raise TriremeError(
                "invalid_value",
                "instance_id in the body is not the one in the path.",
                param="instance_id",
            )
        if record.wire != "native":
            raise TriremeError(
                "invalid_value", "FastChat workers register by /register_worker.", param="wire"
            )
        verdict = fleet.put(record, peer_of(request))
        drains = verdict.accepted and record.state == "draining"
        return _answer(
            verdict,
            drains and fleet.acknowledged(record.instance_id),
            fleet.registry.successors(record.instance_id) if drains else 0,
        )

    @router.delete("/fleet/workers/{instance_id}", status_code=204)
    async def delete_worker(instance_id: InstanceId) -> Response:
        fleet.leave(instance_id)
        return Response(status_code=204)

    @router.delete("/fleet/gateways/{gateway}", status_code=204)
    async def delete_gateway(
        gateway: Annotated[str, Path(min_length=1, max_length=64)],
    ) -> Response:
        fleet.followers.leave(gateway)
        return Response(status_code=204)

    @router.get(FLEET, response_model=FleetSnapshot, openapi_extra=query_of(FleetQuery))
    async def snapshot(request: Request) -> Response:
        asked = parse_query(request, FleetQuery)
        known = asked.epoch == fleet.epoch
        if asked.gateway:
            after, wait_s = asked.after if known else 0, min(asked.wait_s, MAX_WAIT_S)
            fleet.followers.heard(asked.gateway, after, wait_s, fleet.clock())
        try:
            async with Leash(request.scope):
                if known:
                    await fleet.feed.wait_after(asked.after, asked.wait_s)
        except ClientDisconnect:
            if asked.gateway:
                fleet.followers.broke_off(asked.gateway, fleet.clock())
            return Response(status_code=499)
        told = fleet.feed.rendered(asked.after if known and asked.changes else None)
        return Response(told, media_type="application/json")

    @router.get("/fleet/workers")
    async def workers() -> JSONResponse:
        now = fleet.clock()
        listed = [_listed(entry, now) for entry in fleet.registry.entries]
        return JSONResponse({"complete": fleet.registry.complete, "workers": listed})

    return router


@lru_cache(maxsize=1024)
def _answer(verdict: Verdict, acknowledged: bool, successors: int) -> Response:
    """A `HeartbeatAnswer`; nearly all heartbeats get the same."""
    told = HeartbeatAnswer(
        accepted=verdict.accepted,
        stale=verdict.outcome == "stale",
        incarnation=verdict.incarnation,
        lease_ms=round(verdict.lease_s * 1000),
        acknowledged=acknowledged,
        successors=successors,
    )
    status = 409 if verdict.outcome == "conflict" else 200
    return Response(told.model_dump_json(), status, media_type="application/json")


def peer_of(request: Request) -> str:
    """The address that a request comes from; empty when unknown."""
    host: str = (request.scope.get("client") or ("",))[0]
    return host


def _listed(entry: Entry, now: float) -> dict[str, object]:
    left_s = None if entry.lease_s is None else round(max(0.0, entry.expires_at - now), 3)
    return {
        **entry.record.model_dump(mode="json"),
        "known_s": round(now - entry.joined_at, 3),
        "heard_s": round(now - entry.heard_at, 3),
        "lease_left_s": left_s,
        "held": entry.held,
    }
