"""All tiers speak TLS to each other, by a private authority; a foreign one is refused."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.stack.processes import ROOT, Tier

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}


class Authority:
    """A private one, with a server certificate, in files."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self.ca = folder / f"{name}-ca.pem"
        self.context = ssl.create_default_context()
        made = trustme.CA()
        made.cert_pem.write_to_path(str(self.ca))
        made.configure_trust(self.context)
        issued = made.issue_cert("localhost", "127.0.0.1")
        self.key, self.chain = folder / f"{name}-key.pem", folder / f"{name}-chain.pem"
        issued.private_key_pem.write_to_path(str(self.key))
        self.chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def environment(self, trusted: Authority) -> dict[str, str]:
        return {
            "SSL_KEYFILE": str(self.key),
            "SSL_CERTFILE": str(self.chain),
            "SSL_CERT_FILE": str(trusted.ca),
        }


class Tiers:
    """Started with `--ssl`, ended with the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ours, self.others = Authority(folder, "ours"), Authority(folder, "others")
        self._started: list[Tier] = []

    def start(self, tier: str, *flags: str, by: Authority, trusts: Authority) -> Tier:
        log = self._folder / f"{tier}-{len(self._started)}.log"
        made = Tier(tier, log, "--ssl", *flags, **by.environment(trusts))
        made.url = made.url.replace("http://", "https://")
        self._started.append(made)
        return made

    def worker(self, controller: Tier, *, trusts: Authority, model: str = "m") -> Tier:
        flags = ("--engine", "sim", "--model-names", model, "--controller-address", controller.url)
        return self.start("worker", *flags, by=self.ours, trusts=trusts)

    def get(self, tier: Tier, path: str) -> httpx.Response:
        return httpx.get(tier.url + path, verify=self.ours.context, timeout=10)

    def post(self, tier: Tier, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(tier.url + path, json=body, verify=self.ours.context, timeout=20)

    def until(self, condition: Callable[[], bool], timeout_s: float = 40.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except httpx.TransportError:
                pass  # it is still starting
            time.sleep(0.1)
        raise AssertionError("\n".join(one.log.read_text()[-1500:] for one in self._started))

    def close(self) -> None:
        for tier in self._started:
            tier.kill()


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[Tiers]:
    made = Tiers(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_every_hop_is_encrypted(tiers: Tiers) -> None:
    """Registration, the fleet, generation; by the native wire, by FastChat's, and relayed."""
    ours = tiers.ours
    controller = tiers.start("controller", by=ours, trusts=ours)
    gateway = tiers.start("gateway", "--controller-address", controller.url, by=ours, trusts=ours)
    worker = tiers.worker(controller, trusts=ours)
    tiers.until(lambda: tiers.get(gateway, "/readyz").status_code == 200)
    answer = tiers.post(gateway, "/v1/chat/completions", {"model": "m", **CHAT})
    assert answer.status_code == 200, answer.text
    fleet = tiers.get(controller, "/fleet").json()
    assert [one["address"].partition(":")[0] for one in fleet["workers"]] == ["https"]
    with pytest.raises(httpx.TransportError):
        httpx.get(worker.url.replace("https", "http") + "/health", timeout=5)
    shown = subprocess.run(
        [sys.executable, "-m", "trireme.cli", "status", "--controller-address", controller.url],
        cwd=ROOT,
        env={**os.environ, "SSL_CERT_FILE": str(ours.ca), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert worker.url in shown.stdout, shown.stderr
    # the same worker once more, as one of FastChat's: its native record makes way
    tiers.get(controller, "/fleet")
    httpx.delete(
        f"{controller.url}/fleet/workers/{fleet['workers'][0]['instance_id']}",
        verify=ours.context,
    )
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    registered = {"worker_name": worker.url, "check_heart_beat": False, "worker_status": status}
    assert tiers.post(controller, "/register_worker", registered).status_code == 200
    tiers.until(lambda: tiers.get(controller, "/fleet").json()["workers"][0]["wire"] == "fastchat")

    def by_fastchat() -> bool:
        answer = tiers.post(gateway, "/v1/chat/completions", {"model": "m", **CHAT})
        found = tiers.get(controller, "/fleet").json()["workers"]
        short = found[0]["instance_id"].removeprefix("fastchat-")[:8]
        return answer.status_code == 200 and answer.headers["x-trireme-worker"] == short

    tiers.until(by_fastchat, 15)
    relayed = tiers.post(
        controller, "/worker_generate_stream", {"model": "m", "prompt": "x", "max_new_tokens": 4}
    )
    assert relayed.content.split(b"\0")[0].endswith(b"}")
    assert b'"error_code": 0' in relayed.content or b'"error_code":0' in relayed.content


def test_a_foreign_certificate_is_refused_and_the_log_says_why(tiers: Tiers) -> None:
    ours, others = tiers.ours, tiers.others
    controller = tiers.start("controller", by=ours, trusts=ours)
    gateway = tiers.start("gateway", "--controller-address", controller.url, by=ours, trusts=others)
    worker = tiers.worker(controller, trusts=others)
    for tier in (gateway, worker):
        tiers.until(lambda tier=tier: "certificate is not trusted" in tier.log.read_text())
    assert tiers.get(gateway, "/readyz").status_code == 503
    assert tiers.get(controller, "/fleet").json()["workers"] == []


def test_a_worker_with_a_foreign_certificate_gets_no_request(tiers: Tiers) -> None:
    ours, others = tiers.ours, tiers.others
    controller = tiers.start("controller", by=ours, trusts=ours)
    gateway = tiers.start("gateway", "--controller-address", controller.url, by=ours, trusts=ours)
    flags = ("--engine", "sim", "--model-names", "m", "--controller-address", controller.url)
    tiers.start("worker", *flags, by=others, trusts=ours)
    tiers.until(lambda: tiers.get(gateway, "/readyz").status_code == 200)
    answer = tiers.post(gateway, "/v1/chat/completions", {"model": "m", **CHAT})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "worker_unreachable")
    log = gateway.log.read_text().lower()
    assert "certificate" in log
    assert "127.0.0.1" not in answer.text
