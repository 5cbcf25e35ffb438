"""Workers that die, stand still, or come back as somebody else."""

from __future__ import annotations

import asyncio
import signal

from tests.chaos.scene import Promise, Row, Scene

TRAFFIC_S = 0.05
LEASE_S = 6.0
RESUMED_S = 1.2
"""A pause of less than a second and the prefill, of 0.2 s here."""


async def nothing(scene: Scene) -> None:
    """What the machine does by itself: gaps that the other rows have to be measured against."""
    await asyncio.sleep(3 * scene.scale.warm_s)


async def kill_idle(scene: Scene) -> None:
    victim = scene.fleet.workers[0]
    await scene.strike(victim.kill)
    await scene.found_by_lease(LEASE_S, workers=2)
    scene.load.resume()
    await asyncio.sleep(scene.scale.warm_s)


async def kill_in_prefill(scene: Scene) -> None:
    """Most of the requests of a burst are at the busiest worker's prefill when it dies."""
    await scene.load.pause()
    burst = asyncio.create_task(scene.load.burst(scene.scale.streams))
    await asyncio.sleep(0.1)
    victim = await scene.busiest()
    await scene.strike(victim.kill)
    await scene.found_by_traffic(TRAFFIC_S)
    await burst
    first_s = scene.load.tally.worst_first_s
    scene.measured("first token", first_s, 0.2 + RESUMED_S)


async def kill_in_stream(scene: Scene) -> None:
    victim = await scene.busiest()
    await scene.strike(victim.kill)
    await scene.found_by_traffic(TRAFFIC_S)
    await scene.found_by_lease(LEASE_S, workers=2)


async def kill_two(scene: Scene) -> None:
    """One after the other: an answer may have to go on twice, and its second death is its last
    only when the same request was at both."""
    for worker in scene.fleet.workers[:2]:
        await scene.strike(worker.kill)
        await scene.found_by_traffic(TRAFFIC_S)
        worker.start()
        await asyncio.sleep(8)


async def stop_and_continue(scene: Scene) -> None:
    victim = await scene.busiest()
    await scene.strike(lambda: victim.send(signal.SIGSTOP))
    await scene.found_by_lease(LEASE_S, workers=2)
    await scene.found_by_traffic(LEASE_S + 0.5)
    await scene.load.settle()
    victim.send(signal.SIGCONT)  # what it still writes must reach nobody
    await scene.fleet.whole()
    await asyncio.sleep(scene.scale.warm_s)


async def another_model_on_the_port(scene: Scene) -> None:
    """Its answers are shorter and its fingerprint is another: either would show."""
    victim = await scene.busiest()
    args = victim.args
    other = ("--sim-tokens", "77", "--model-names", "other")
    await scene.strike(victim.kill)
    victim.start(*args, *other)
    await scene.found_by_traffic(TRAFFIC_S)

    async def serves() -> bool:
        url, question = scene.fleet.gateways[0].url, {"role": "user", "content": "who are you?"}
        body = {"model": "other", "messages": [question], "max_tokens": 1}
        async with scene.http.post(f"{url}/v1/chat/completions", json=body) as answer:
            return answer.status == 200

    await scene.when("other model", serves, 10.0)
    await scene.load.settle()
    refused = await scene.fleet.metric([victim], "trireme_requests_failed_total")
    scene.note(f"{refused:.0f} requests refused by the newcomer")
    victim.kill()


async def sigterm_each_worker(scene: Scene) -> None:
    for worker in scene.fleet.workers:
        await scene.strike(lambda worker=worker: worker.send(signal.SIGTERM))
        code = await worker.ended(60.0)
        scene.expect(code == 0, f"a worker left with exit code {code}")
        worker.start()
        await scene.fleet.whole()


ROWS = [
    Row("nothing", "none", Promise("0 lost"), nothing),
    Row(
        "worker-kill-idle",
        "worker SIGKILL, idle",
        Promise("0 lost; by lease < 6 s"),
        kill_idle,
        loaded=False,
    ),
    Row(
        "worker-kill-prefill",
        "worker SIGKILL, in prefill",
        Promise("0 lost; found < 50 ms; first token + < 1 s"),
        kill_in_prefill,
    ),
    Row(
        "worker-kill-stream",
        "worker SIGKILL, in mid-stream",
        Promise("0 lost; found < 50 ms, by lease < 6 s; gap < 1 s + prefill", gap_s=RESUMED_S),
        kill_in_stream,
    ),
    Row(
        "worker-kill-two",
        "two workers SIGKILL, one after the other",
        Promise("0 lost; found < 50 ms; gap < 1 s + prefill", gap_s=RESUMED_S),
        kill_two,
    ),
    Row(
        "worker-stop",
        "worker SIGSTOP, then SIGCONT",
        Promise("0 lost; found < 6 s; nothing of a zombie", gap_s=LEASE_S + RESUMED_S),
        stop_and_continue,
    ),
    Row(
        "worker-other-model",
        "worker reborn with another model",
        Promise("0 answers of the wrong model", gap_s=RESUMED_S),
        another_model_on_the_port,
    ),
    Row(
        "worker-sigterm",
        "SIGTERM of each worker in turn",
        Promise("0 failed; exit code 0"),
        sigterm_each_worker,
    ),
]
