"""compose.yaml: its commands start real processes that become healthy, and it is locked down."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TIERS = ("controller", "worker", "gateway")
PORTS = {"controller": 21001, "worker": 21002, "gateway": 8000}
TOKEN = "a-secret-of-this-test"


class Missing(Exception):
    """A variable that must be set is not."""


def interpolate(value: Any, variables: dict[str, str]) -> Any:
    """What compose makes of `${NAME:-default}` and `${NAME:?message}`."""
    if isinstance(value, dict):
        return {key: interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def one(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        if variables.get(name):
            return variables[name]
        if operator == ":?":
            raise Missing(name)
        return rest

    return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", one, value)


def load(variables: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = interpolate(
        yaml.safe_load((ROOT / "compose.yaml").read_text()), variables
    )
    return found


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = load({"TRIREME_CLUSTER_TOKEN": TOKEN})["services"]
    return found


def test_it_has_the_three_tiers(services: dict[str, Any]) -> None:
    assert set(services) == set(TIERS)


def test_without_a_cluster_token_it_does_not_start() -> None:
    with pytest.raises(Missing, match="TRIREME_CLUSTER_TOKEN"):
        load({})


def test_the_gateway_alone_is_published_and_on_loopback(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"gateway": ["127.0.0.1:8000:8000"]}


@pytest.mark.parametrize("tier", TIERS)
def test_a_container_has_no_rights(tier: str, services: dict[str, Any]) -> None:
    service = services[tier]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "user" not in service  # the image's own, see test_dockerfile.py


def test_the_ledger_outlives_the_gateways_container(services: dict[str, Any]) -> None:
    gateway = services["gateway"]
    assert gateway["environment"]["XDG_STATE_HOME"] == "/state"
    assert gateway["volumes"] == ["usage:/state"]


def test_no_secret_stands_on_a_command_line(services: dict[str, Any]) -> None:
    assert not [name for name, service in services.items() if TOKEN in " ".join(service["command"])]


def test_a_tier_waits_for_those_that_it_needs(services: dict[str, Any]) -> None:
    waits = {name: set(service.get("depends_on", ())) for name, service in services.items()}
    assert waits == {
        "controller": set(),
        "worker": {"controller"},
        "gateway": {"controller", "worker"},
    }
    conditions = {
        each["condition"]
        for service in services.values()
        for each in service.get("depends_on", {}).values()
    }
    assert conditions == {"service_healthy"}


def test_the_gpu_file_changes_the_worker_alone() -> None:
    gpu = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text())
    assert set(gpu["services"]) == {"worker"}


# ---- the commands, as processes ------------------------------------------------------------------


@dataclass
class Stack:
    """Each tier's command and healthcheck on this machine's ports."""

    services: dict[str, Any]
    ports: dict[str, int]
    children: Any

    def here(self, word: str) -> str:
        """A word of the file with this machine's loopback and free ports."""
        for tier, port in PORTS.items():
            word = re.sub(rf"\b{port}\b", str(self.ports[tier]), word)
            word = word.replace(f"http://{tier}:", "http://127.0.0.1:")
        return word.replace("0.0.0.0", "127.0.0.1")

    def start(self, tier: str) -> None:
        script, *args = (self.here(word) for word in self.services[tier]["command"])
        assert script == f"trireme-{tier}"
        environment = {
            name: str(value) for name, value in self.services[tier]["environment"].items()
        }
        for folder_of_the_image in ("HF_HOME", "XDG_STATE_HOME"):
            environment.pop(folder_of_the_image, None)
        self.children.start([sys.executable, "-m", tier, *args], environment)

    def healthy(self, tier: str) -> bool:
        kind, program, *args = map(self.here, self.services[tier]["healthcheck"]["test"])
        assert (kind, program) == ("CMD", "python")
        done = subprocess.run([sys.executable, *args], capture_output=True, timeout=20, check=False)
        return done.returncode == 0


@pytest.fixture(scope="module")
def stack(services: dict[str, Any], children: Any, free_ports: Callable[[int], list[int]]) -> Stack:
    """The whole stack, each tier started when those before it are healthy."""
    found = Stack(services, dict(zip(TIERS, free_ports(3), strict=True)), children)
    for tier in TIERS:
        found.start(tier)
        children.wait(lambda tier=tier: found.healthy(tier), timeout_s=90)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_commands_make_a_stack_that_answers(stack: Stack) -> None:
    base = f"http://127.0.0.1:{stack.ports['gateway']}"
    with urllib.request.urlopen(f"{base}/v1/models", timeout=10) as answer:
        model = json.load(answer)["data"][0]["id"]
    body = {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "Hello!"}]}
    request = urllib.request.Request(
        f"{base}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", ["controller/fleet", "worker/model_details"])
def test_the_control_ports_are_closed_to_those_without_the_token(stack: Stack, path: str) -> None:
    tier, _, route = path.partition("/")
    url = f"http://127.0.0.1:{stack.ports[tier]}/{route}"
    data = b"{}" if tier == "worker" else None
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(url, data), timeout=10)
    refused.value.close()
    assert refused.value.code == 401
