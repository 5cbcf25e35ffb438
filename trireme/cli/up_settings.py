"""What `trireme up` was asked for, and the command lines that follow. Pure, but for the ports."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from trireme.service.settings import is_loopback

LOOPBACK = "127.0.0.1"


class PortTaken(Exception):
    """A port that a tier needs is in use."""


@dataclass(frozen=True)
class UpSettings:
    """The flags of `trireme up`; ports are chosen already (`with_ports`).

    Attributes:
        model_path: folder or hub id; None serves the worker's embedded demo model.
        workers: how many, all of the same model, on ports from `worker_port` on.
        model_names: names for clients; None takes the worker's default.
        engine: the worker's engine; None takes its default.
        host: where the gateway listens; controller and workers stay on loopback.
        api_keys: keys that the gateway asks for; empty asks for none.
        worker_args: further flags of the workers, as given after `--`.
    """

    model_path: str | None = None
    workers: int = 1
    model_names: str | None = None
    engine: str | None = None
    host: str = LOOPBACK
    port: int = 8000
    controller_port: int = 21001
    worker_ports: tuple[int, ...] = ()
    worker_port: int = 21002
    api_keys: str = field(default="", repr=False)
    ssl: bool = False
    log_level: str = "info"
    log_dir: Path | None = None
    verbose: bool = False
    worker_args: tuple[str, ...] = ()

    @property
    def client_host(self) -> str:
        """The host by which this machine reaches the gateway."""
        if self.host in ("0.0.0.0", ""):
            return LOOPBACK
        if self.host.strip("[]") == "::":
            return "[::1]"
        return f"[{self.host}]" if ":" in self.host and "[" not in self.host else self.host

    @property
    def gateway_url(self) -> str:
        return f"{'https' if self.ssl else 'http'}://{self.client_host}:{self.port}"

    @property
    def controller_url(self) -> str:
        return f"http://{LOOPBACK}:{self.controller_port}"


@dataclass(frozen=True)
class TierPlan:
    """One process to start.

    Attributes:
        name: for a person. tier: which program. url: where it will answer.
        environment: what its environment has besides this process' own.
    """

    name: str
    tier: str
    url: str
    args: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def with_ports(settings: UpSettings) -> UpSettings:
    """The settings with every port chosen: 0 becomes a free one.

    Raises:
        PortTaken: naming the flag to change.
    """
    taken: set[int] = set()
    port = _claim(settings.host, settings.port, "--port", taken)
    controller_port = _claim(LOOPBACK, settings.controller_port, "--controller-port", taken)
    workers = tuple(
        _claim(LOOPBACK, settings.worker_port and settings.worker_port + n, "--worker-port", taken)
        for n in range(settings.workers)
    )
    return replace(settings, port=port, controller_port=controller_port, worker_ports=workers)


def plan(settings: UpSettings) -> tuple[TierPlan, ...]:
    """The processes, in the order of their start."""
    logs = ("--log-level", settings.log_level)
    controller = TierPlan(
        "controller",
        "controller",
        settings.controller_url,
        ("--host", LOOPBACK, "--port", str(settings.controller_port), "--no-ssl", *logs),
    )
    model: tuple[str, ...] = ()
    for flag, value in (
        ("--model-path", settings.model_path),
        ("--model-names", settings.model_names),
        ("--engine", settings.engine),
    ):
        model += () if value is None else (flag, value)
    workers = tuple(
        TierPlan(
            "worker" if settings.workers == 1 else f"worker-{number}",
            "worker",
            f"http://{LOOPBACK}:{port}",
            (
                *("--host", LOOPBACK, "--port", str(port), "--no-ssl"),
                *("--worker-address", f"http://{LOOPBACK}:{port}"),
                *("--controller-address", settings.controller_url),
                *logs,
                *model,
                *settings.worker_args,
            ),
        )
        for number, port in enumerate(settings.worker_ports, start=1)
    )
    gateway = TierPlan(
        "gateway",
        "gateway",
        settings.gateway_url,
        (
            *("--host", settings.host, "--port", str(settings.port)),
            "--ssl" if settings.ssl else "--no-ssl",
            *("--controller-address", settings.controller_url),
            *logs,
        ),
        {"TRIREME_GATEWAY_API_KEYS": settings.api_keys} if settings.api_keys else {},
    )
    return (controller, *workers, gateway)


def open_to_others(settings: UpSettings) -> bool:
    """Whether the gateway listens for other machines and asks for no key."""
    return not is_loopback(settings.host) and not settings.api_keys


def _claim(host: str, port: int, flag: str, taken: set[int]) -> int:
    """`port` if it is free on `host`, a free one for 0; `taken` grows by it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        if port in taken:
            raise PortTaken(f"port {port} is wanted twice: give another {flag}")
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host.strip("[]"), port))
            except OverflowError as error:
                raise PortTaken(f"there is no port {port}: give another {flag}") from error
            except OSError as error:
                reason = error.strerror or str(error)
                raise PortTaken(
                    f"port {port} on {host} cannot be used ({reason}): give another {flag}"
                ) from error
            found = int(probe.getsockname()[1])
        if found not in taken:
            taken.add(found)
            return found
