"""Gateways that die or leave, with a second one beside them."""

from __future__ import annotations

import asyncio
import signal

from tests.chaos.scene import Promise, Row, Scene

FREE_S = 1.0


async def kill_one(scene: Scene) -> None:
    """Its clients go to the other one; what the workers did for it they stop."""
    dead, other = scene.fleet.gateways
    await scene.strike(dead.kill)

    async def freed() -> bool:
        running = await scene.fleet.metric(scene.fleet.workers, "vllm:num_requests_running")
        return running <= scene.load.sequences_at[other.url]

    await scene.when("slots free", freed, FREE_S)
    await asyncio.sleep(scene.scale.warm_s)
    dead.start()
    await scene.fleet.whole()
    await asyncio.sleep(scene.scale.warm_s)


async def sigterm_each(scene: Scene) -> None:
    for gateway in scene.fleet.gateways:
        gateway.send(signal.SIGTERM)
        code = await gateway.ended(60.0)
        scene.expect(code == 0, f"a gateway left with exit code {code}")
        gateway.start()
        await scene.fleet.whole()
        await asyncio.sleep(0.5)  # the balancer has seen it


ROWS = [
    Row(
        "gateway-kill",
        "gateway SIGKILL, with a second one",
        Promise("0 lost at the other one; slots free < 1 s"),
        kill_one,
    ),
    Row(
        "gateway-sigterm",
        "SIGTERM of each gateway in turn",
        Promise("0 failed; exit code 0"),
        sigterm_each,
    ),
]
