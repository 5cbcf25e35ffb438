"""Wall clocks that jump. Leases, timeouts and deadlines go by another clock."""

from __future__ import annotations

import asyncio

from tests.chaos.clock import NEEDS
from tests.chaos.fleet import Shape
from tests.chaos.rows_workers import RESUMED_S
from tests.chaos.scene import Promise, Row, Scale, Scene, sim_fleet

HOUR_S = 3600
JUMPS = (
    {"controller": HOUR_S},
    {"controller": -HOUR_S, "worker": HOUR_S},
    {"controller": 0, "worker": -HOUR_S, "gateway": 24 * HOUR_S},
    {"controller": 0, "worker": 0, "gateway": -HOUR_S},
)
"""How far each tier's clock is ahead; one that is not named stays."""
READ_S = 2.0
"""A process reads its clock's file once a second."""


def with_clocks(scale: Scale) -> Shape:
    return sim_fleet(scale, clocks=True)


async def jumps(scene: Scene) -> None:
    fleet = scene.fleet
    if not fleet.clocks:
        scene.result.skipped = NEEDS
        return
    expired = "trireme_controller_expirations_total"
    before = await fleet.metric(fleet.controllers, expired)
    fewest = float(len(fleet.workers))
    for jump in JUMPS:
        for tier, ahead_s in jump.items():
            fleet.clocks[tier].set(ahead_s)
        ends = asyncio.get_running_loop().time() + READ_S + 2 * scene.scale.warm_s
        while asyncio.get_running_loop().time() < ends:
            for gateway in fleet.gateways:
                fewest = min(fewest, await fleet.ready_workers(gateway))
            await asyncio.sleep(0.2)
    expirations = await fleet.metric(fleet.controllers, expired) - before
    scene.expect(expirations == 0, f"{expirations:.0f} leases ran out")
    scene.expect(fewest == len(fleet.workers), f"a gateway knew of {fewest:.0f} workers only")
    async with fleet.http.get(fleet.gateways[0].url + "/livez") as answer:
        scene.note(f"a gateway's date is now {answer.headers['date']}")


ROWS = [
    Row(
        "clock-jump",
        "wall clocks jump by an hour, and by a day",
        Promise("0 expirations, no flapping", gap_s=RESUMED_S),
        jumps,
        shape=with_clocks,
    ),
]
