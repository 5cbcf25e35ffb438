"""A tier for tests of the process shell: `python sample_tier.py drain-seconds exit-code flags`."""

from __future__ import annotations

import asyncio
import sys

from fastapi import FastAPI

from trireme.service.logs import configure_logging
from trireme.service.server import ExitRequest, bind, run
from trireme.service.settings import TierSettings, load_settings, settings_config


class Sample(TierSettings):
    """A tier for tests."""

    model_config = settings_config("sample")


def main() -> None:
    drain_s, exit_code = float(sys.argv[1]), int(sys.argv[2])
    settings = load_settings(Sample, sys.argv[3:])
    configure_logging("sample", settings.log_level, settings.log_format)
    listener = bind(settings, "sample")
    app, draining, exit_request = FastAPI(), asyncio.Event(), ExitRequest()

    async def drain() -> None:
        draining.set()
        await asyncio.sleep(drain_s)

    @app.get("/state")
    async def state() -> str:
        return "draining" if draining.is_set() else "serving"

    @app.get("/slow/{seconds}")
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @app.get("/exit")
    async def leave() -> None:
        exit_request.ask(exit_code)

    print(listener.getsockname()[1], flush=True)
    sys.exit(run(app, settings, listener, drain=drain, grace_s=20, exit_request=exit_request))


if __name__ == "__main__":
    main()
