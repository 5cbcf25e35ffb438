"""The health routes of every tier."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, Counter

from trireme.service.health import HEALTH_PATHS, health_router


def test_alive_is_told_from_ready() -> None:
    reasons = ["loading weights 40%", None]
    metrics = CollectorRegistry()
    Counter("things", "Things.", registry=metrics).inc()
    app = FastAPI()
    app.include_router(health_router("worker", lambda: reasons[0], metrics))
    client = TestClient(app)
    assert {client.get(path).status_code for path in HEALTH_PATHS - {"/readyz"}} == {200}
    assert client.head("/health").status_code == 200
    busy = client.get("/readyz")
    assert client.head("/readyz").status_code == 503
    assert (busy.status_code, busy.json()["reason"]) == (503, "loading weights 40%")
    del reasons[0]
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/version").json()["tier"] == "worker"
    assert "things_total 1.0" in client.get("/metrics").text
