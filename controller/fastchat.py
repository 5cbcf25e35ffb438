"""The routes of FastChat 0.2.36's controller. None of them dials a worker, but for the relay.

What differs on purpose: `/refresh_all_workers` drops what ran out instead of polling everybody,
and a registration without `worker_status` is refused, because filling it in would mean to call
an address that anybody may have given.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from controller.addresses import check_address
from controller.fleet import Fleet
from controller.native import peer_of
from controller.relay import Relay, error_frame
from protocol.errors import ErrorCode, TriremeError
from protocol.fastchat import HeartBeat, ModelQuery, RegisterWorker, WorkerStatus, base_url
from protocol.fleet import ModelRecord, WorkerRecord
from trireme.service.control import parse, parse_body, read_body
from trireme.service.openapi import body_of, bytes_of

FRAMES: Final = "application/octet-stream"
FASTCHAT_BODIES: Final = (RegisterWorker, HeartBeat, ModelQuery)
"""What these routes read, for the OpenAPI document."""

MAX_GENERATE_BODY_BYTES: Final = 4 * 1024 * 1024
LEASE_S: Final = 90.0
"""FastChat workers beat every 45 s; its own controller drops them after 90 s."""


def fastchat_router(fleet: Fleet, relay: Relay) -> APIRouter:
    """All routes of FastChat's controller."""
    router = APIRouter(tags=["fastchat"])

    @router.post("/register_worker", openapi_extra=body_of(RegisterWorker))
    async def register_worker(request: Request) -> JSONResponse:
        body = await parse_body(request, RegisterWorker)
        if body.worker_status is None:
            raise TriremeError(
                "missing_required_parameter",
                "worker_status is required: this controller never calls a worker to ask for it.",
                param="worker_status",
            )
        record = _record(body, body.worker_status)
        fleet.register(record, peer_of(request), LEASE_S if body.check_heart_beat else None)
        return JSONResponse(None)

    @router.post("/receive_heart_beat", openapi_extra=body_of(HeartBeat))
    async def receive_heart_beat(request: Request) -> dict[str, bool]:
        body = await parse_body(request, HeartBeat)
        return {"exist": fleet.beat(base_url(body.worker_name), body.queue_length)}

    @router.post("/refresh_all_workers")
    async def refresh_all_workers() -> JSONResponse:
        fleet.sweep()
        return JSONResponse(None)

    @router.post("/list_models")
    async def list_models() -> dict[str, list[str]]:
        return {"models": _models(fleet, multimodal=None)}

    @router.post("/list_multimodal_models")
    async def list_multimodal_models() -> dict[str, list[str]]:
        return {"models": _models(fleet, multimodal=True)}

    @router.post("/list_language_models")
    async def list_language_models() -> dict[str, list[str]]:
        return {"models": _models(fleet, multimodal=False)}

    @router.post("/get_worker_address", openapi_extra=body_of(ModelQuery))
    async def get_worker_address(request: Request) -> dict[str, str]:
        body = await parse_body(request, ModelQuery)
        chosen = fleet.dispatch(body.model)
        return {"address": chosen.record.address if chosen else ""}

    @router.post("/worker_get_status")
    async def worker_get_status() -> dict[str, Any]:
        ready = fleet.registry.ready()
        speed = float(sum(entry.record.speed for entry in ready))
        return {
            "model_names": _models(fleet, multimodal=None),
            "speed": int(speed) if speed.is_integer() else speed,
            "queue_length": sum(entry.record.queue_length for entry in ready),
        }

    @router.post(
        "/worker_generate_stream",
        openapi_extra=body_of(ModelQuery),
        response_class=Response,
        responses={200: bytes_of(FRAMES, "JSON objects, each followed by a zero byte")},
    )
    async def worker_generate_stream(request: Request) -> Response:
        raw = await read_body(request, MAX_GENERATE_BODY_BYTES)
        chosen = fleet.dispatch(parse(raw, ModelQuery).model, relayable_only=True)
        if chosen is None:
            return Response(error_frame(ErrorCode.CONTROLLER_NO_WORKER), media_type=FRAMES)
        return StreamingResponse(relay.stream(chosen.record.address, raw), media_type=FRAMES)

    @router.get("/test_connection")
    async def test_connection() -> str:
        return "success"

    return router


def _record(body: RegisterWorker, status: WorkerStatus) -> WorkerRecord:
    """A registration as fleet record; the address alone says who it is."""
    address = base_url(body.worker_name)
    check_address(address, "worker_name")
    if not all(0 < len(name) <= 256 for name in status.model_names):
        raise TriremeError(
            "invalid_value",
            "A model name has 1 to 256 characters.",
            param="worker_status.model_names",
        )
    return WorkerRecord(
        instance_id="fastchat-" + hashlib.sha256(address.encode()).hexdigest()[:32],
        address=address,
        models=tuple(ModelRecord(name=name) for name in status.model_names),
        wire="fastchat",
        speed=status.speed,
        queue_length=status.queue_length,
        multimodal=body.multimodal,
    )


def _models(fleet: Fleet, *, multimodal: bool | None) -> list[str]:
    """Names that ready workers serve, sorted: of all, of multimodal or of the other workers."""
    return sorted(
        {
            model.name
            for entry in fleet.registry.ready()
            if multimodal is None or entry.record.multimodal == multimodal
            for model in entry.record.models
        }
    )
