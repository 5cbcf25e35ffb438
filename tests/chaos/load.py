"""The clients: they ask all the time, and compare each answer with the undisturbed one.

A client uses one gateway, and another one only where a load balancer would take it there: its own
is gone, or says that it is not ready. Such moves are counted apart.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
import orjson

from tests.chaos.fleet import Fleet, Program
from tests.chaos.questions import Answer, Question, difference

SILENCE_S = 45.0
"""A stream that says nothing for so long is lost."""
CHAT = "/v1/chat/completions"
BROKEN = (aiohttp.ClientError, OSError, TimeoutError, ValueError)
"""What a connection raises that ends too early, or says what is no answer."""


class Lost(Exception):
    """A request got no answer; says why."""


class Refused(Lost):
    """An answer with another status than 200."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status} {body[:200]}")
        self.status = status


class GatewayGone(Exception):
    """The gateway was killed, or takes nobody any more: the client's own business."""


@dataclass
class Tally:
    """What the clients saw during one row. Times in seconds."""

    requests: int = 0
    lost: int = 0
    missing: int = 0
    extra: int = 0
    differing: int = 0
    moved: int = 0
    worst_gap_s: float = 0.0
    worst_first_s: float = 0.0
    gaps: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def fault(self, text: str) -> None:
        if len(self.faults) < 8:
            self.faults.append(text)

    def compare(self, question: Question, answer: Answer, whole: Answer) -> None:
        """Count what an answer has too little, too much or otherwise."""
        wrong = difference(answer, whole)
        if wrong:
            self.differing += 1
            self.missing += wrong.missing
            self.extra += wrong.extra
            self.fault(f"{question.name}: {wrong}")

    def delta_after(self, gap_s: float) -> None:
        self.worst_gap_s = max(self.worst_gap_s, gap_s)
        self.gaps.append(gap_s)


class Balancer:
    """Which gateways a load balancer would use: those whose `/readyz` said 200 a moment ago."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.ready: list[Program] = list(fleet.gateways)

    async def watch(self, every_s: float = 0.1) -> None:
        """Look again and again until cancelled."""
        while True:
            answers = await asyncio.gather(
                *(self._fleet.answers(one, "/readyz", 1.0) for one in self._fleet.gateways)
            )
            found = zip(self._fleet.gateways, answers, strict=True)
            self.ready = [one for one, answered in found if answered]
            await asyncio.sleep(every_s)

    def choose(self, number: int) -> Program:
        """A client stays at its gateway while that is ready."""
        own = self._fleet.gateways[number % len(self._fleet.gateways)]
        if own in self.ready or not self.ready:
            return own
        return self.ready[number % len(self.ready)]


class Load:
    """Streams and plain requests that never end; pause and go on as a row needs.

    Args:
        whole: the undisturbed answers, by the question's name.
    """

    def __init__(
        self,
        fleet: Fleet,
        questions: Sequence[Question],
        whole: dict[str, Answer],
        *,
        streams: int,
        plain: int,
    ) -> None:
        self.tally = Tally()
        self.balancer = Balancer(fleet)
        self.sequences_at: dict[str, int] = {one.url: 0 for one in fleet.gateways}
        self._fleet = fleet
        self._questions = questions
        self._whole = whole
        self._clients = [(number, number < streams) for number in range(streams + plain)]
        self._go = asyncio.Event()
        self._under_way: set[int] = set()
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._http = fleet.http

    async def __aenter__(self) -> Load:
        loops = [self._client(number, stream) for number, stream in self._clients]
        self._tasks = [asyncio.create_task(one) for one in [*loops, self.balancer.watch()]]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check(self) -> None:
        """Raises what ended a client: a fault of this program."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error

    def resume(self) -> None:
        """Have the clients ask again."""
        self._go.set()

    def stop_asking(self) -> None:
        """No new requests."""
        self._go.clear()

    async def pause(self, timeout_s: float = 120.0) -> None:
        """No new requests; returns when those under way have ended."""
        self.stop_asking()
        async with asyncio.timeout(timeout_s):
            while self._under_way:
                await asyncio.sleep(0.02)
                self.check()

    async def settle(self, timeout_s: float = 120.0) -> None:
        """Returns when all requests that are under way now have ended; new ones go on."""
        now = set(self._under_way)
        async with asyncio.timeout(timeout_s):
            while now & self._under_way:
                await asyncio.sleep(0.02)
                self.check()

    async def burst(self, count: int) -> None:
        """So many streamed requests more, at once, beside the clients'."""
        await asyncio.gather(*(self._one(number, stream=True) for number in range(count)))

    async def _client(self, number: int, stream: bool) -> None:
        await asyncio.sleep(number * 0.02)
        while True:
            await self._go.wait()
            await self._one(number, stream)

    async def _one(self, client: int, stream: bool) -> None:
        number = next(self._numbers)
        question = self._questions[number % len(self._questions)]
        tally = self.tally
        tally.requests += 1
        self._under_way.add(number)
        try:
            await self._ask_until_served(client, question, stream, tally)
        except Lost as error:
            tally.lost += 1
            tally.fault(f"{question.name}: {error}")
        finally:
            self._under_way.discard(number)

    async def _ask_until_served(
        self, client: int, question: Question, stream: bool, tally: Tally
    ) -> None:
        for _ in range(50):
            gateway = self.balancer.choose(client)
            sequences = int(question.body.get("n", 1))
            self.sequences_at[gateway.url] += sequences
            try:
                answer = await self._ask(gateway, question, stream, tally)
            except GatewayGone:
                tally.moved += 1
                await asyncio.sleep(0.1)
                continue
            finally:
                self.sequences_at[gateway.url] -= sequences
            tally.compare(question, answer, self._whole[question.name])
            return
        raise Lost("no gateway took it")

    async def _ask(
        self, gateway: Program, question: Question, stream: bool, tally: Tally
    ) -> Answer:
        try:
            return await ask(self._http, gateway.url, question, stream, tally)
        except Refused as error:
            if error.status == 503 and gateway not in self.balancer.ready:
                raise GatewayGone from error
            raise
        except BROKEN as error:
            if await self._gone(gateway, isinstance(error, aiohttp.ClientConnectorError)):
                raise GatewayGone from error
            raise Lost(f"{type(error).__name__}: {error}") from error

    async def _gone(self, gateway: Program, unreachable: bool) -> bool:
        """Whether the gateway was killed, or nobody could connect to it because it is leaving."""
        for _ in range(20):
            if not gateway.alive or gateway.killed:
                return True
            if unreachable and gateway not in self.balancer.ready:
                return True
            await asyncio.sleep(0.025)
        return False


async def ask(
    http: aiohttp.ClientSession,
    gateway: str,
    question: Question,
    stream: bool,
    tally: Tally,
    on_delta: Callable[[], object] = lambda: None,
) -> Answer:
    """One request to the gateway of that address, read to its end.

    Raises:
        Lost: it was refused, or ended otherwise than an answer ends.
        BROKEN: the connection did.
    """
    body, headers = orjson.dumps(question.asked(stream)), {"Content-Type": "application/json"}
    async with http.post(gateway + CHAT, data=body, headers=headers) as response:
        if response.status != 200:
            raise Refused(response.status, await response.text())
        if not stream:
            return Answer.of_plain(orjson.loads(await response.read()))
        return await _folded(response, int(question.body.get("n", 1)), tally, on_delta)


async def ask_and_compare(
    http: aiohttp.ClientSession,
    gateway: str,
    question: Question,
    whole: Answer,
    tally: Tally,
    on_delta: Callable[[], object] = lambda: None,
) -> None:
    """A streamed request, counted; whatever goes wrong is the server's fault."""
    tally.requests += 1
    try:
        answer = await ask(http, gateway, question, True, tally, on_delta)
    except (Lost, *BROKEN) as error:
        tally.lost += 1
        tally.fault(f"{question.name}: {type(error).__name__}: {error}")
    else:
        tally.compare(question, answer, whole)


async def _folded(
    response: aiohttp.ClientResponse, n: int, tally: Tally, on_delta: Callable[[], object]
) -> Answer:
    answer = Answer.empty(n)
    began = last = time.perf_counter()
    first = done = False
    same: tuple[object, ...] | None = None
    while True:
        async with asyncio.timeout(SILENCE_S):
            line = await response.content.readline()
        if not line:
            break
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            done = True
            continue
        chunk = orjson.loads(data)
        if "error" in chunk:
            raise Lost(f"error event {chunk['error']}")
        named = (chunk["id"], chunk["created"], chunk["model"], chunk["system_fingerprint"])
        if same is None:
            same = named
        elif same != named:
            raise Lost(f"its chunks are named {same} and {named}")
        if answer.add(chunk):
            now = time.perf_counter()
            if first:
                tally.delta_after(now - last)
            else:
                tally.worst_first_s = max(tally.worst_first_s, now - began)
            first, last = True, now
            on_delta()
    if not done:
        raise Lost("the stream ended without [DONE]")
    return answer


async def undisturbed(
    http: aiohttp.ClientSession, gateway: str, asked: Sequence[Question]
) -> dict[str, Answer]:
    """The answer to each question, while nothing fails."""

    async def one(question: Question) -> Answer:
        async with http.post(gateway + CHAT, json=question.body) as answer:
            assert answer.status == 200, await answer.text()
            return Answer.of_plain(await answer.json())

    answers = await asyncio.gather(*map(one, asked))
    return {question.name: answer for question, answer in zip(asked, answers, strict=True)}
