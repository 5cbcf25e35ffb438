"""Controllers that die: one, and all of them."""

from __future__ import annotations

import asyncio
import signal

from tests.chaos.fleet import until
from tests.chaos.rows_workers import RESUMED_S
from tests.chaos.scene import Promise, Row, Scene

WHOLE_S = 2.0


async def kill_one(scene: Scene) -> None:
    victim = scene.fleet.controllers[0]
    await scene.strike(victim.kill)
    await asyncio.sleep(6)  # longer than the lease
    await _start_again(scene)


async def all_down(scene: Scene) -> None:
    """A worker dies meanwhile: requests alone can find out."""
    for controller in scene.fleet.controllers:
        controller.kill()
    down_s = scene.scale.controllers_down_s
    await asyncio.sleep(down_s / 2)
    await scene.strike(scene.fleet.workers[0].kill)
    await scene.found_by_traffic(0.05)
    await asyncio.sleep(down_s / 2)
    scene.fleet.workers[0].start()
    await _start_again(scene)


async def _start_again(scene: Scene) -> None:
    """Start those that are down; the registry is whole within two seconds of their start."""
    down = [one for one in scene.fleet.controllers if not one.alive]
    for controller in down:
        controller.start()

    async def up() -> bool:
        return all([await scene.fleet.answers(one, "/livez") for one in down])

    async def whole() -> bool:
        alive = {one.url for one in scene.fleet.workers if one.alive}
        return all([await scene.fleet.listed(one) >= alive for one in down])

    await until(up, 30.0, "a controller does not start", every_s=0.02)
    await scene.strike(lambda: None)
    await scene.when("registry", whole, WHOLE_S)
    await asyncio.sleep(scene.scale.warm_s)


async def sigterm_each(scene: Scene) -> None:
    for controller in scene.fleet.controllers:
        controller.send(signal.SIGTERM)
        code = await controller.ended()
        scene.expect(code == 0, f"a controller left with exit code {code}")
        await _start_again(scene)


ROWS = [
    Row(
        "controller-kill",
        "one controller SIGKILL, restarted",
        Promise("0 lost; registry whole < 2 s", gap_s=RESUMED_S),
        kill_one,
    ),
    Row(
        "controllers-down",
        "all controllers down, a worker SIGKILL meanwhile",
        Promise("0 lost; found < 50 ms; registry whole < 2 s", gap_s=RESUMED_S),
        all_down,
    ),
    Row(
        "controller-sigterm",
        "SIGTERM of each controller in turn",
        Promise("0 failed; registry whole < 2 s", gap_s=RESUMED_S),
        sigterm_each,
    ),
]
