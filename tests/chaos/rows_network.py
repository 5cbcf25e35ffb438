"""The network between the tiers: cut without a reset, and heartbeats that go astray."""

from __future__ import annotations

import asyncio

from tests.chaos.fleet import Shape
from tests.chaos.rows_workers import RESUMED_S
from tests.chaos.scene import Promise, Row, Scale, Scene, sim_fleet

SILENCE_S = 10.0
"""The gateway's --silence-timeout-s."""


def worker_apart(scale: Scale) -> Shape:
    return sim_fleet(scale, first_worker_apart=True)


async def cut(scene: Scene) -> None:
    """Between the gateways and one worker, whose heartbeats still come."""
    network = scene.fleet.network
    assert network is not None
    scene.note(f"cut by: {network.kind}")
    first_before_s = scene.load.tally.worst_first_s
    await scene.strike(network.cut)
    await scene.found_by_traffic(SILENCE_S + 1.0)
    await asyncio.sleep(max(8.0, 2 * scene.scale.warm_s))
    await scene.load.settle()
    first_s = scene.load.tally.worst_first_s
    scene.note(f"worst first token {first_s:.2f} s, {first_before_s:.2f} s before")
    network.mend()
    await asyncio.sleep(2 * scene.scale.warm_s)


def heartbeats_harmed(scale: Scale) -> Shape:
    return sim_fleet(scale, heartbeats_by_proxy=True)


async def astray(scene: Scene) -> None:
    """Half of them lost, up to two in a row; a third sent again later, behind newer ones."""
    fleet = scene.fleet
    expired = "trireme_controller_expirations_total"
    before = await fleet.metric(fleet.controllers, expired)
    for proxy in fleet.proxies:
        proxy.harmful = True
    fewest = float(len(fleet.workers))
    ends = asyncio.get_running_loop().time() + scene.scale.heartbeats_s
    while asyncio.get_running_loop().time() < ends:
        for gateway in fleet.gateways:
            fewest = min(fewest, await fleet.ready_workers(gateway))
        await asyncio.sleep(0.2)
    for proxy in fleet.proxies:
        proxy.harmful = False
    lost = sum(proxy.did["lose"] for proxy in fleet.proxies)
    copied = sum(proxy.did["copy"] for proxy in fleet.proxies)
    stale = await fleet.metric(
        fleet.controllers, "trireme_controller_records_total", labels="stale"
    )
    scene.note(f"{lost} records lost, {copied} sent twice; {stale:.0f} came too late")
    scene.expect(lost > 0 and stale > 0, "no harm was done")
    expirations = await fleet.metric(fleet.controllers, expired) - before
    scene.expect(expirations == 0, f"{expirations:.0f} leases ran out")
    scene.expect(fewest == len(fleet.workers), f"a gateway knew of {fewest:.0f} workers only")


ROWS = [
    Row(
        "heartbeats",
        "heartbeats lost, doubled, reordered",
        Promise("0 expirations, no flapping", gap_s=RESUMED_S),
        astray,
        shape=heartbeats_harmed,
    ),
    Row(
        "network-cut",
        "network gateway–worker cut, no reset",
        Promise("0 lost; streams resume after the silence", gap_s=SILENCE_S + 1.0 + RESUMED_S),
        cut,
        shape=worker_apart,
    ),
]
