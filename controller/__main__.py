"""`python -m controller`: reads flags and environment, serves until a signal."""

from __future__ import annotations

import sys

from controller.config import ControllerSettings
from trireme.service.settings import load_settings


def main() -> None:
    """Run the controller; ends the process with an exit code of `trireme.service.settings`."""
    settings = load_settings(ControllerSettings)

    from controller.app import create_app
    from trireme.service.logs import configure_logging
    from trireme.service.server import bind, run

    configure_logging("controller", settings.log_level, settings.log_format)
    listener = bind(settings, "python -m controller")
    app = create_app(settings)
    # whether a worker may be relayed to depends on where its registration came from
    sys.exit(run(app, settings, listener, drain=app.state.drain, proxy_headers=True))


if __name__ == "__main__":
    main()
