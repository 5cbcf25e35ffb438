"""`python -m gateway`: settings from flags and environment, then the server."""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path

from gateway.config import CLOSING_S, SUMMED_GAUGES, GatewaySettings
from gateway.start import shared_table, usage_db
from trireme.service.ledger import LedgerError
from trireme.service.settings import EXIT_BAD_ARGUMENTS, is_loopback, load_settings

log = logging.getLogger(__name__)


def main() -> int:
    """Serve until a signal; returns the exit code (0 clean, 2 bad arguments, 4 port taken)."""
    settings = load_settings(GatewaySettings)
    from trireme.service.logs import configure_logging
    from trireme.service.server import bind, run

    configure_logging("gateway", settings.log_level, settings.log_format)
    listener = bind(settings, "python -m gateway")
    if not is_loopback(settings.host) and not settings.accepted_keys():
        log.warning("no API keys are set: everybody who reaches %s may use it", settings.host)
    try:
        ledger = usage_db(settings)
    except LedgerError as error:
        sys.stderr.write(f"python -m gateway: {error}\n")
        return EXIT_BAD_ARGUMENTS
    if settings.processes > 1:
        return _several(settings, listener, ledger)
    from gateway.app import create_app

    app = create_app(settings, usage_db=ledger)
    return run(
        app, settings, listener, drain=app.state.drain, grace_s=settings.drain_grace_s + CLOSING_S
    )


def _several(settings: GatewaySettings, listener: socket.socket, ledger: Path | None) -> int:
    from trireme.service.processes import Parent, python

    with shared_table() as table:

        def command(listener_fd: int, control_fd: int) -> list[str]:
            fds = map(str, (listener_fd, control_fd, table.fileno()))
            return python("gateway.process", *fds, str(ledger or ""), *sys.argv[1:])

        shared = (table.fileno(),)
        return Parent(command, listener, settings.processes, SUMMED_GAUGES, shared).run()


if __name__ == "__main__":
    sys.exit(main())
