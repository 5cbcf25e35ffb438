"""Starts the tiers of a plan, waits until they serve, restarts what crashes, stops them in order.

What is done about a tier that ends by itself:

    before it was ever ready       everything stops, with its exit code
    exit code 2, 3 or 4            everything stops with it: starting again would not help
    exit code 0                    somebody stopped it; the last of its kind stops everything
    anything else                  it is started again, at most `MAX_RESTARTS` times in `WINDOW_S`
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from trireme.cli.child import Child, describe_end, exit_code
from trireme.cli.display import Display
from trireme.cli.launch import tier_command, tier_environment
from trireme.cli.up_settings import TierPlan
from trireme.service.settings import EXIT_BAD_ARGUMENTS, EXIT_MODEL, EXIT_OK, EXIT_PORT

TICK_S: Final = 0.1
PROBE_TIMEOUT_S: Final = 2.0
MAX_RESTARTS: Final = 5
WINDOW_S: Final = 300.0
MAX_BACKOFF_S: Final = 8.0
TAIL_LINES: Final = 15
STOP_ORDER: Final = (("gateway", 30.0), ("worker", 15.0), ("controller", 5.0))
"""Which tiers stop one after the other, and how many seconds each gets before it is killed."""
HOPELESS: Final = frozenset({EXIT_BAD_ARGUMENTS, EXIT_MODEL, EXIT_PORT})


class RestartBudget:
    """How often a tier may be started again. Pure: the clock is passed in."""

    def __init__(self, limit: int = MAX_RESTARTS, window_s: float = WINDOW_S) -> None:
        self._limit = limit
        self._window_s = window_s
        self._spent: deque[float] = deque()

    def take(self, now: float) -> float | None:
        """Seconds to wait before the next start, or None when there were too many."""
        while self._spent and now - self._spent[0] >= self._window_s:
            self._spent.popleft()
        if len(self._spent) >= self._limit:
            return None
        self._spent.append(now)
        return min(MAX_BACKOFF_S, 0.25 * 2.0 ** len(self._spent))


@dataclass
class _Member:
    plan: TierPlan
    child: Child
    budget: RestartBudget = field(default_factory=RestartBudget)
    was_ready: bool = False
    ready: bool = False
    gone: bool = False
    start_at: float | None = None
    probe: asyncio.Task[None] | None = None


class Stack:
    """The processes of one `trireme up`.

    Args:
        plans: what to start, in this order.
        log_dir: an existing folder that takes a file a tier.
        display: where a person reads how it goes.
        verbose: whether to show what the tiers write.
        announce: awaited once, when all are ready.
    """

    def __init__(
        self,
        plans: Sequence[TierPlan],
        log_dir: Path,
        display: Display,
        *,
        verbose: bool,
        announce: Callable[[], Awaitable[None]],
    ) -> None:
        self._display = display
        self._verbose = verbose
        self._announce = announce
        self._announced = False
        self._signals = 0
        self._members = [
            _Member(
                each,
                Child(
                    each.name,
                    tier_command(each.tier, each.args),
                    tier_environment(each.environment),
                    log_dir / f"{each.name}.log",
                ),
            )
            for each in plans
        ]

    async def run(self) -> int:
        """Start, serve until a signal or a failure, stop; returns the exit code."""
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(sign, self._on_signal)
        try:
            for member in self._members:
                self._start(member)
            return await self._serve()
        finally:
            await self._stop()

    def _on_signal(self) -> None:
        self._signals += 1

    def _start(self, member: _Member) -> None:
        member.start_at = None
        member.ready = False
        member.child.start()
        member.probe = asyncio.create_task(self._until_ready(member))

    async def _serve(self) -> int:
        """Look after the tiers until a signal (0) or until one is beyond help (its exit code)."""
        while not self._signals:
            self._show_output()
            for member in self._members:
                code = self._look_after(member)
                if code is not None:
                    return code
            if not self._announced and all(member.ready for member in self._members):
                self._announced = True
                await self._announce()
            await asyncio.sleep(TICK_S)
        return EXIT_OK

    def _look_after(self, member: _Member) -> int | None:
        """The exit code of the whole when `member` is beyond help."""
        if member.gone:
            return None
        if member.start_at is not None:
            if time.monotonic() >= member.start_at:
                self._start(member)
            return None
        code = member.child.ended()
        if code is None:
            return None
        if member.probe is not None:
            member.probe.cancel()
        if code == EXIT_OK and member.was_ready:
            member.gone = True
            kin = [other for other in self._members if other.plan.tier == member.plan.tier]
            last = all(other.gone for other in kin)
            back = "" if last else "; to have it back, stop all with Ctrl-C and start again"
            self._display.line(member.plan.name, f"was stopped from outside{back}")
            return EXIT_OK if last else None
        if member.was_ready and code not in HOPELESS:
            wait_s = member.budget.take(time.monotonic())
            if wait_s is not None:
                member.start_at = time.monotonic() + wait_s
                text = f"{describe_end(code)}; starting it again in {wait_s:g} s"
                self._display.line(member.plan.name, text, "bad")
                return None
        self._explain(member, code)
        return exit_code(code) or 1

    def _explain(self, member: _Member, code: int) -> None:
        """Why everything stops: how the tier ended, and its last words."""
        tail = member.child.tail(TAIL_LINES)
        reason = describe_end(code)
        if code == EXIT_MODEL:
            reason = "cannot load the model"
        elif member.was_ready and code not in HOPELESS:
            reason += f" for the {MAX_RESTARTS + 1}th time"
        self._display.line(member.plan.name, reason, "bad")
        if not self._verbose:
            self._display.output(member.plan.name, tail)
        self._display.line("", f"its log: {member.child.log}")

    async def _until_ready(self, member: _Member) -> None:
        """Ask the tier until it says that it is ready, and show what it says until then."""
        name = member.plan.name
        # whom we started on this machine we know by its port; its certificate names a host
        async with httpx.AsyncClient(
            timeout=PROBE_TIMEOUT_S, trust_env=False, verify=False
        ) as client:
            self._display.waiting(name, "starting")
            while True:
                with contextlib.suppress(httpx.HTTPError, ValueError):
                    answer = await client.get(f"{member.plan.url}/readyz")
                    if answer.status_code == 200:
                        break
                    self._display.waiting(name, _reason(answer))
                await asyncio.sleep(TICK_S)
        member.ready = member.was_ready = True
        self._display.line(name, f"ready at {member.plan.url}", "good")

    def _show_output(self) -> None:
        if self._verbose:
            for member in self._members:
                self._display.output(member.plan.name, member.child.new_lines())

    async def _stop(self) -> None:
        """Gateway, workers, controller; each bounded in time. One more signal kills them all."""
        probes = [member.probe for member in self._members if member.probe is not None]
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        self._display.wait_no_more()
        before = self._signals
        for tier, bound_s in STOP_ORDER:
            kin = [member.child for member in self._members if member.plan.tier == tier]
            running = [child for child in kin if child.running and child.ended() is None]
            if running:
                self._display.line(tier, "stopping")
            for child in running:
                child.ask_to_stop()
            deadline = time.monotonic() + bound_s
            while any(child.ended() is None for child in running):
                if time.monotonic() >= deadline or self._signals > before:
                    break
                self._show_output()
                await asyncio.sleep(TICK_S / 2)
            for child in running:
                if child.ended() is None:
                    self._display.line(child.name, "had to be killed", "bad")
                    child.kill()
        self._show_output()
        self._display.line("trireme up", "all stopped")


def _reason(answer: httpx.Response) -> str:
    """What `/readyz` says beside a 503."""
    body = answer.json()
    reason = body.get("reason") if isinstance(body, dict) else None
    return str(reason or f"answers {answer.status_code}")
