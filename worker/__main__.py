"""`python -m worker`: flags and environment in, an exit code out. Only this file reads argv."""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import NoReturn
from urllib.parse import urlsplit

from trireme.service.settings import EXIT_MODEL, load_settings
from worker.config import Settings
from worker.engine.protocol import ModelLoadError

log = logging.getLogger("worker")

CLOSING_S = 2.0
"""After the drain nothing runs but callers that do not read."""


def main() -> NoReturn:
    """Run a worker until a signal ends it."""
    settings = load_settings(Settings)
    try:
        settings.check_model_path()
    except ModelLoadError as error:
        sys.stderr.write(f"python -m worker: {error}\n")
        raise SystemExit(EXIT_MODEL) from error
    raise SystemExit(_serve(settings))


def _serve(settings: Settings) -> int:
    from trireme.service.logs import configure_logging
    from trireme.service.server import ExitRequest, bind, run
    from worker.app import create_app
    from worker.hub_logs import shorten_retries

    if not settings.trust_remote_code:
        _hide_torch()
    listener = bind(settings, "python -m worker")
    configure_logging("worker", settings.log_level, settings.log_format)
    if settings.asks_the_hub:
        log.warning("no folder %r: trying it as a hub id", settings.model_path)
        shorten_retries()
    address = settings.base_url(listener.getsockname()[1], _own_ip(settings.controller_address))
    exit_request = ExitRequest()
    made = create_app(settings, address=address, exit_request=exit_request)
    return run(
        made.app,
        settings,
        listener,
        drain=made.drain,
        grace_s=CLOSING_S,
        exit_request=exit_request,
    )


def _hide_torch() -> None:
    """Let transformers import without torch: this process only tokenizes, the engine's has torch.

    Saves 260 MB and two seconds of the start. A checkpoint's own code may want torch, though.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.modules["torch"] = None  # type: ignore[assignment]


def _own_ip(controllers: tuple[str, ...]) -> str:
    """This machine's address towards the first controller; no packet is sent."""
    target = urlsplit(controllers[0]).hostname if controllers else None
    try:
        family, kind, _, _, where = socket.getaddrinfo(
            target or "localhost", 9, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


if __name__ == "__main__":
    main()
