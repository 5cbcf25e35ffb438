"""`trireme drain` against a real controller: whom it finds, and what it says when it cannot."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import httpx
from starlette.types import ASGIApp

from controller.app import create_app
from controller.config import ControllerSettings

Serve = Callable[[ASGIApp], str]
Trireme = Callable[..., subprocess.CompletedProcess[str]]


def fleet(serve: Serve, **settings: Any) -> str:
    """A controller that knows two workers, where nobody listens, and one of FastChat's."""
    url = serve(create_app(ControllerSettings(**settings)))
    token = settings.get("cluster_token")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=url, trust_env=False, headers=headers) as client:
        for name, port in (("abc1", 1), ("abd2", 2)):
            worker: dict[str, Any] = {
                "instance_id": name,
                "address": f"http://127.0.0.1:{port}",
                "models": [],
            }
            worker["ttl_ms"] = 3_600_000
            client.put(f"/fleet/workers/{name}", json=worker).raise_for_status()
        status = {"model_names": ["vicuna"], "speed": 1, "queue_length": 0}
        client.post(
            "/register_worker", json={"worker_name": "http://fc:3", "worker_status": status}
        ).raise_for_status()
    return url


def refused(trireme: Trireme, url: str, *args: str) -> str:
    ended = trireme("drain", *args, "--controller-address", url)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    return ended.stderr


def test_a_worker_is_found_by_its_address_or_the_beginning_of_its_id(
    serve: Serve, trireme: Trireme
) -> None:
    url = fleet(serve)
    for name in ("abc", "http://127.0.0.1:1/", "127.0.0.1:1"):
        assert "http://127.0.0.1:1 cannot be reached" in refused(trireme, url, name)


def test_an_unknown_an_ambiguous_and_fastchats_worker_are_refused(
    serve: Serve, trireme: Trireme
) -> None:
    url = fleet(serve)
    assert "there is no worker 'xyz'" in refused(trireme, url, "xyz")
    ambiguous = refused(trireme, url, "ab")
    assert "'ab' is ambiguous: abc1 at http://127.0.0.1:1, abd2 at" in ambiguous
    assert "FastChat's worker, which cannot drain" in refused(trireme, url, "http://fc:3")


def test_the_cluster_token_is_asked_for(serve: Serve, trireme: Trireme) -> None:
    url = fleet(serve, cluster_token="geheim")
    assert "TRIREME_CLUSTER_TOKEN" in refused(trireme, url, "abc")
    assert "cannot be reached" in refused(trireme, url, "abc", "--cluster-token", "geheim")


def test_now_and_a_grace_exclude_each_other(trireme: Trireme) -> None:
    ended = trireme("drain", "abc", "--now", "--grace-s", "5")
    assert ended.returncode == 2
    assert "give one of them" in ended.stderr
