"""One of several gateway processes, `python -m gateway.process …`: the file descriptors of the
listener, of the socket to the parent and of the table of limits, the usage ledger, flags.

Started by `python -m gateway --processes N`, which passes its own flags on. Each process has its
own picture of the fleet, of prefixes and of failures, and counts its own requests in flight.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

from gateway.config import CLOSING_S, GatewaySettings
from trireme.service.settings import load_settings


def main() -> int:
    """Serve on the parent's listener until a signal, or until the parent is gone."""
    listener, control = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:3])
    table_fd, ledger = int(sys.argv[3]), sys.argv[4]
    settings = load_settings(GatewaySettings, sys.argv[5:])
    from gateway.app import create_app
    from gateway.buckets import Table
    from trireme.service.logs import configure_logging
    from trireme.service.processes import Sibling
    from trireme.service.server import run

    configure_logging("gateway", settings.log_level, settings.log_format)

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    app = create_app(
        settings,
        lambda shown: Sibling(control, shown, orphaned=stop),
        table=Table(table_fd),
        usage_db=Path(ledger) if ledger else None,
    )
    return run(
        app, settings, listener, drain=app.state.drain, grace_s=settings.drain_grace_s + CLOSING_S
    )


if __name__ == "__main__":
    sys.exit(main())
