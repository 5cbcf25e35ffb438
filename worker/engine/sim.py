"""The simulated engine, for load and fault tests: no weights, tokens from a hash, timed or at once.

The token at position p depends on (prompt, seed, choice, p) alone; greedy requests use neither
seed nor choice. So any lost, repeated or wrong token shows as an exact mismatch.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import itertools
import math
import struct
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from protocol.errors import TriremeError
from worker.engine.fairness import FairQueue
from worker.engine.outputs import Output, Outputs
from worker.engine.protocol import (
    EngineInfo,
    EngineLoad,
    Finish,
    Job,
    Pair,
    PromptOutput,
    RawLogprob,
    SequenceParams,
    StepOutput,
)
from worker.engine.rates import Rate
from worker.text.words import END_ID, FIRST_WORD_ID, WordTokenizer

EMBEDDING_SIZE = 64
DEFAULT_CONTEXT_LENGTH = 32768
_TICK_S = 0.001
_UNREAD_OUTPUTS = 256
_UNREAD_PAUSE_S = 0.005
_NUM_WORDS = WordTokenizer.vocab_size - FIRST_WORD_ID


@dataclass(frozen=True, slots=True)
class SimOptions:
    """How the simulation behaves.

    Attributes:
        tokens: completion length where the request does not set one.
        ttft_s, itl_s: seconds to the first token, and from one token to the next.
        max_running: sequences that run at once; others wait.
        context_length: tokens of prompt and completion together.
    """

    tokens: int = 64
    ttft_s: float = 0.0
    itl_s: float = 0.0
    max_running: int = 256
    context_length: int = DEFAULT_CONTEXT_LENGTH


@dataclass(eq=False, slots=True)
class _Channel:
    """A job as its reader and the ticker share it."""

    job: Job
    outputs: Outputs
    open_choices: int
    prompt_sent: bool = False

    def end_choice(self) -> None:
        self.open_choices -= 1
        if self.open_choices == 0:
            self.outputs.end()


@dataclass(eq=False, slots=True)
class _Sequence:
    """One choice of a job; `due` is when its next token comes."""

    channel: _Channel
    index: int
    key: bytes
    due: float = 0.0
    pos: int = 0
    running: bool = False
    ended: bool = False


class SimEngine:
    """Engine of `--engine sim`; one ticker serves all sequences."""

    def __init__(self, options: SimOptions, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._info = EngineInfo(
            engine="sim",
            context_length=options.context_length,
            eos_token_ids=(END_ID,),
            vocab_size=WordTokenizer.vocab_size,
            capacity=options.max_running,
            dtype="none",
            device="none",
            weights_digest=hashlib.sha256(f"sim 1 {options.tokens}".encode()).hexdigest(),
        )
        self._waiting: FairQueue[_Sequence] = FairQueue()
        self._heap: list[tuple[float, int, _Sequence]] = []  # a heap by (due, order)
        self._order = itertools.count()
        self._jobs: dict[str, list[_Sequence]] = {}
        self._wake = asyncio.Event()
        self._dead: asyncio.Future[str] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._running = 0
        self._step = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._last_emit: float | None = None
        self._decode_rate = Rate()
        self._prefill_rate = Rate()

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def progress(self) -> str:
        return "" if self._ticker else "starting"

    async def start(self) -> None:
        """Start the ticker."""
        self._dead = asyncio.get_running_loop().create_future()
        self._ticker = asyncio.create_task(self._run(), name="sim-ticker")
        self._ticker.add_done_callback(self._ticker_ended)

    def use_tokenizer(self, described: str) -> None:
        """As `Engine.use_tokenizer`; it knows no grammars."""

    async def wait_dead(self) -> str:
        """Returns when the engine was closed, or its ticker has failed."""
        assert self._dead is not None
        return await asyncio.shield(self._dead)

    async def submit(self, job: Job, hold_s: float = 0.0) -> AsyncGenerator[list[Output], None]:
        """Outputs of a job; see `Engine.submit`."""
        if self._dead is None or self._dead.done():
            raise TriremeError("engine_unavailable", "The engine is not running.")
        channel = _Channel(job, Outputs(job, hold_s), len(job.choices))
        sequences = [_Sequence(channel, i, _key(job, i), pos=len(ids)) for i, ids in job.choices]
        self._jobs[job.job_id] = sequences
        for sequence in sequences:
            self._waiting.add(job.tenant, (job.priority, next(self._order)), sequence)
        self._wake.set()
        try:
            while outputs := await channel.outputs.take():
                yield outputs
        finally:
            channel.outputs.close()
            for sequence in self._jobs.pop(job.job_id, []):
                self._end(sequence)

    def abort(self, job_id: str, index: int) -> None:
        """End one choice."""
        for sequence in self._jobs.get(job_id, []):
            if sequence.index == index:
                self._end(sequence)

    async def embed(self, inputs: list[list[int]], _tenant: str = "") -> list[list[float]]:
        """Deterministic vectors: the mean of one vector a token; no call waits for another."""
        await asyncio.sleep(self._options.ttft_s)
        vectors = []
        for ids in inputs:
            vectors.append(_embedding(ids))
            await asyncio.sleep(0)  # inputs can be many, and heartbeats go on
        return vectors

    async def score(self, _pairs: list[Pair], _tenant: str = "") -> list[float]:
        """Never asked for: pairs are scored by their embeddings."""
        raise TriremeError("unsupported_by_model", "The simulated engine is no cross-encoder.")

    def load(self) -> EngineLoad:
        """The load now."""
        waiting = list(self._waiting)
        return EngineLoad(
            running=self._running,
            waiting=len(waiting),
            waiting_tokens=sum(len(sequence.channel.job.prompt_ids) for sequence in waiting),
            kv_free=1 - self._running / self._options.max_running,
            prefill_tps=self._prefill_rate.value,
            decode_tps=self._decode_rate.value,
            step=self._step,
            busy=bool(self._running or waiting),
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
        )

    async def close(self) -> None:
        """Stop; running jobs fail with `engine_dead`."""
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        self._die("closed")

    def _ticker_ended(self, ticker: asyncio.Task[None]) -> None:
        if not ticker.cancelled():
            self._die(f"the ticker failed: {ticker.exception()!r}")

    def _die(self, reason: str) -> None:
        for sequences in list(self._jobs.values()):
            gone = TriremeError("engine_dead", "The engine was stopped.")
            sequences[0].channel.outputs.fail(gone)
        if self._dead is not None and not self._dead.done():
            self._dead.set_result(reason)

    # ---- the ticker -----------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._admit(self._clock())
            self._wake.clear()
            delay = self._heap[0][0] - self._clock() if self._heap else math.inf
            if delay > 0:
                await self._sleep(delay)
            else:
                await asyncio.sleep(0)
            self._emit_due(self._clock())

    async def _sleep(self, delay_s: float) -> None:
        """Sleep until the next token is due, or until a job comes or leaves."""
        timeout = None if delay_s == math.inf else max(delay_s, _TICK_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()

    def _admit(self, now: float) -> None:
        while self._waiting and self._running < self._options.max_running:
            sequence = self._waiting.pop()
            channel = sequence.channel
            if sequence.index == 0:
                self._waiting.charge_prompt(channel.job.tenant, len(channel.job.prompt_ids))
                self._prompt_tokens += len(channel.job.prompt_ids)
                if self._options.ttft_s:
                    self._prefill_rate.add(len(channel.job.prompt_ids), self._options.ttft_s)
            self._running += 1
            sequence.running = True
            self._schedule(sequence, now + self._options.ttft_s)

    def _schedule(self, sequence: _Sequence, due: float) -> None:
        sequence.due = due
        heapq.heappush(self._heap, (due, next(self._order), sequence))

    def _emit_due(self, now: float) -> None:
        """One token for every sequence whose time has come; a late one catches up by and by."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        live = [sequence for sequence in due if not sequence.ended]
        if not live:
            return
        self._step += 1
        emitted = 0
        for sequence in live:
            if len(sequence.channel.outputs) >= _UNREAD_OUTPUTS:  # its reader is slow or stuck
                self._schedule(sequence, now + _UNREAD_PAUSE_S)
            else:
                self._emit(sequence)
                emitted += 1
        self._generation_tokens += emitted
        if self._last_emit is not None:
            self._decode_rate.add(emitted, now - self._last_emit)
        self._last_emit = now if self._heap else None

    def _emit(self, sequence: _Sequence) -> None:
        channel, pos = sequence.channel, sequence.pos
        params = channel.job.params
        if params.prompt_logprobs is not None and not channel.prompt_sent:
            channel.prompt_sent = True
            channel.outputs.put(PromptOutput(_prompt_logprobs(channel.job)))
        self._waiting.charge_generated(channel.job.tenant, 1)
        token_id = _token(sequence.key, pos, params)
        finish, stop_token = self._finish(params, pos, token_id)
        logprobs = (
            None
            if params.logprobs is None
            else [_logprob(sequence.key, pos, token_id, params.logprobs)]
        )
        channel.outputs.put(
            StepOutput(sequence.index, pos, [token_id], logprobs, finish, stop_token)
        )
        sequence.pos += 1
        if finish is None:
            self._schedule(sequence, sequence.due + self._options.itl_s)
        else:
            self._end(sequence)

    def _finish(
        self, params: SequenceParams, pos: int, token_id: int
    ) -> tuple[Finish | None, int | None]:
        made = pos + 1
        if token_id in params.stop_token_ids and made >= params.min_tokens:
            return "stop", token_id
        if made >= params.max_tokens:
            return "length", None
        own_end = END_ID in params.stop_token_ids  # unless end-of-sequence is ignored
        if own_end and made >= max(self._options.tokens, params.min_tokens):
            return "stop", None
        return None, None

    def _end(self, sequence: _Sequence) -> None:
        if sequence.ended:
            return
        sequence.ended = True
        if sequence.running:
            self._running -= 1
        else:
            self._waiting.discard({id(sequence)})
        sequence.channel.end_choice()
        self._wake.set()


# ---- the simulated model: pure ------------------------------------------------------------------


def _key(job: Job, index: int) -> bytes:
    """What the tokens of a choice depend on."""
    params = job.params
    seed, choice = (0, 0) if params.temperature == 0 else (params.seed, index)
    prompt = struct.pack(f"<{len(job.prompt_ids)}I", *job.prompt_ids)
    return hashlib.blake2b(prompt + f"|{seed}|{choice}".encode(), digest_size=32).digest()


def _draw(key: bytes, pos: int, purpose: int) -> int:
    data = pos.to_bytes(4, "little") + purpose.to_bytes(2, "little")
    return int.from_bytes(hashlib.blake2b(data, key=key, digest_size=8).digest(), "little")


def _token(key: bytes, pos: int, params: SequenceParams) -> int:
    """A word by hash; biases of 100 force and of -100 ban, as far as words are left."""
    if params.logit_bias:
        forced = [token_id for token_id, bias in params.logit_bias if bias >= 100]
        banned = {token_id for token_id, bias in params.logit_bias if bias <= -100}
        words = range(FIRST_WORD_ID, FIRST_WORD_ID + _NUM_WORDS)
        choices = forced or [word for word in words if word not in banned] or list(words)
        return choices[_draw(key, pos, 0) % len(choices)]
    return FIRST_WORD_ID + _draw(key, pos, 0) % _NUM_WORDS


def _logprob(key: bytes, pos: int, token_id: int, num_top: int) -> RawLogprob:
    """The chosen word is the most probable one; then come others, each half as probable."""
    start = _draw(key, pos, 1)
    chosen = -0.1 - start % 1000 / 2000
    others = (FIRST_WORD_ID + (start + i) % _NUM_WORDS for i in range(num_top + 1))
    ranked = [token_id, *(other for other in others if other != token_id)][:num_top]
    top = [(other, chosen - rank * math.log(2)) for rank, other in enumerate(ranked)]
    return RawLogprob(token_id, chosen, top)


def _prompt_logprobs(job: Job) -> list[RawLogprob]:
    key = _key(job, 0)
    num_top = job.params.prompt_logprobs or 0
    first, *others = job.prompt_ids
    return [
        RawLogprob(first, None),
        *(_logprob(key, 2**31 + i, token_id, num_top) for i, token_id in enumerate(others)),
    ]


def _embedding(ids: list[int]) -> list[float]:
    total = [0.0] * EMBEDDING_SIZE
    for token_id, count in sorted(Counter(ids).items()):
        raw = hashlib.shake_128(token_id.to_bytes(4, "little")).digest(EMBEDDING_SIZE)
        total = [value + count * (byte / 127.5 - 1) for value, byte in zip(total, raw, strict=True)]
    return [value / len(ids) for value in total]
