"""The worker's life: load in the background, serve, restart a dead engine, drain, stop."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from protocol import __version__
from protocol.errors import TriremeError, quoted
from protocol.fleet import MAX_COUNTED_GATEWAYS, Capability, Feature, ModelRecord, WorkerState
from trireme.service.server import ExitRequest
from trireme.service.settings import EXIT_MODEL
from worker.admission import Admission
from worker.config import Settings
from worker.engine.protocol import Engine, EngineInfo, EngineLoad, ModelLoadError
from worker.handover import Handover
from worker.text.fim import fills_gaps
from worker.text.prompt import TextModel, always_thinks, effort_switch
from worker.text.structure import Structures
from worker.text.templates import NamedTemplate

log = logging.getLogger(__name__)

MAX_RESTARTS = 5
_HEALTHY_S = 60.0
_RESTART_PAUSE_S = 1.0
_QUEUE_CONTEXTS = 16
_ENCODER_QUEUE_TOKENS = 262_144


@dataclass(frozen=True, eq=False)
class Ready:
    """A model that can be served now: one engine's life.

    Attributes:
        structures: makes grammars for its engine.
        digest: same digest, same answers: weights, dtype, tokenizer, template, version.
    """

    engine: Engine
    info: EngineInfo
    text: TextModel
    admission: Admission
    digest: str = field(init=False)
    structures: Structures = field(init=False)

    def __post_init__(self) -> None:
        made = Structures(self.text.tokenizer, self.info.vocab_size, self.info.eos_token_ids)
        object.__setattr__(self, "structures", made)
        parts = (self.info.weights_digest, self.text.fingerprint, self.info.dtype, __version__)
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        object.__setattr__(self, "digest", digest)


class Runtime:
    """Owns the engine and the worker's state.

    Attributes:
        instance_id: 128 random bits in hex, new with every process.
        restarts: times that a dead engine was started again.
        engine_starts: how often an engine became ready.
        handover: ends what waits for the engine when a drain's time is up.
    """

    def __init__(
        self,
        settings: Settings,
        exit_request: ExitRequest,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.instance_id = secrets.token_hex(16)
        self.restarts = 0
        self.engine_starts = 0
        self.handover = Handover()
        self._exit_request = exit_request
        self._clock = clock
        self._listeners: list[Callable[[], None]] = []
        self._state: WorkerState = "starting"
        self._reason = "starting"
        self._engine: Engine | None = None
        self._ready: Ready | None = None
        self._active = 0
        self._serving: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self._random = random.Random(settings.seed)
        self._life: asyncio.Task[None] | None = None
        self._retry_s: float | None = None

    # ---- state ----------------------------------------------------------------------------------

    @property
    def state(self) -> WorkerState:
        """The state as the fleet sees it."""
        return self._state

    @property
    def ready(self) -> Ready | None:
        """The model that is served, also while draining."""
        return self._ready

    def not_ready(self) -> str | None:
        """Why requests are not served now, for people; None when they are."""
        if self._state == "ready":
            return None
        progress = self._engine.progress if self._state == "starting" and self._engine else ""
        return progress or self._reason

    def load(self) -> EngineLoad:
        """The engine's load; nothing while there is none."""
        return self._ready.engine.load() if self._ready else EngineLoad()

    def require(
        self, model: str, instance_id: str | None = None, digest: str | None = None
    ) -> Ready:
        """What serves a new request.

        Raises:
            TriremeError: `wrong_instance` when the fence does not fit, `draining`,
                `engine_unavailable` after the engine's death, `overloaded` while loading,
                `model_not_found`.
        """
        if instance_id not in (None, self.instance_id):
            raise _another_process()
        if self._state == "draining":
            raise TriremeError("draining", "This worker is shutting down.")
        ready = self._ready
        if ready is None:
            if self._state == "failed":
                message = "The engine of this worker has failed" + (
                    "." if self._retry_s is None else " and is being started again."
                )
                raise TriremeError("engine_unavailable", message, retry_after_s=self._retry_s)
            message = f"The model is not loaded yet: {self.not_ready()}."
            raise TriremeError("overloaded", message, retry_after_s=1.0)
        if digest not in (None, ready.digest):
            raise _another_process()
        if model not in self.settings.served_names:
            message = f"The model `{quoted(model)}` does not exist or you do not have access to it."
            raise TriremeError("model_not_found", message, param="model")
        return ready

    def model_records(self) -> tuple[ModelRecord, ...]:
        """What is served, for the fleet."""
        ready = self._ready
        if ready is None:
            return tuple(ModelRecord(name=name) for name in self.settings.served_names)
        capabilities: tuple[Capability, ...] = ()
        if ready.info.generates:
            capabilities += ("chat", "completions")
        if ready.info.embeds:
            capabilities += ("embeddings",)
        if ready.info.embeds or ready.info.scores:
            capabilities += ("score",)
        has: dict[Feature, object] = {
            "structured_outputs": ready.info.grammars,
            "prompt_logprobs": ready.info.scores_prompts,
            "template_variables": ready.text.template.variables,
            "reasoning_effort": effort_switch(ready.text),
            "plain_answers": not always_thinks(ready.text),
            "beam_search": ready.info.beams,
            "suffix": fills_gaps(ready.text.tokenizer),
        }
        return tuple(
            ModelRecord(
                name=name,
                digest=ready.digest,
                context_length=ready.info.context_length,
                capabilities=capabilities,
                engine=ready.info.engine,
                features=tuple(name for name, value in has.items() if value),
            )
            for name in self.settings.served_names
        )

    def draw_seed(self) -> int:
        """The seed of a request that brings none."""
        return self._random.getrandbits(63) if self.settings.engine_kind.draws_seed else 0

    # ---- requests under way ---------------------------------------------------------------------

    @contextmanager
    def request(self, gateway: str = "") -> Iterator[None]:
        """Around a request: a drain waits for its end, and it counts as that gateway's."""
        self._active += 1
        self._idle.clear()
        if gateway:
            self._serving[gateway] += 1
        try:
            yield
        finally:
            if gateway:
                self._serving[gateway] -= 1
                if not self._serving[gateway]:
                    del self._serving[gateway]
            self._active -= 1
            if self._active == 0:
                self._idle.set()

    @property
    def active(self) -> int:
        """Requests under way."""
        return self._active

    async def idle(self, timeout_s: float) -> bool:
        """Wait for the end of the last request; False when it takes longer."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    @property
    def serving(self) -> dict[str, int] | None:
        """Requests in service by gateway; None where there are too many gateways to tell."""
        return dict(self._serving) if len(self._serving) <= MAX_COUNTED_GATEWAYS else None

    # ---- life -----------------------------------------------------------------------------------

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have `listener` called on every change of the state."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin to load; returns at once."""
        self._life = asyncio.create_task(self._live(), name="worker-life")

    def begin_drain(self) -> None:
        """Take no more requests, and say so; for good."""
        self._enter_state("draining", "draining")

    async def close(self) -> None:
        """Stop the engine at once."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
        if self._engine is not None:
            await self._engine.close()

    def _enter_state(self, state: WorkerState, reason: str) -> None:
        if self._state != "draining":  # a drain is final
            self._state, self._reason = state, reason
        for listener in self._listeners:
            listener()

    async def _live(self) -> None:
        try:
            await self._load_and_serve()
        except ModelLoadError as error:
            self._exit_request.ask(EXIT_MODEL, f"python -m worker: {error}")
        except Exception as error:
            log.exception("the model cannot be loaded")
            reason = f"the model cannot be loaded: {type(error).__name__}: {error}"
            self._exit_request.ask(EXIT_MODEL, f"python -m worker: {' '.join(reason.split())}")

    async def _load_and_serve(self) -> None:
        kind = self.settings.engine_kind
        self._reason = "loading the tokenizer"
        self._engine = kind.build(self.settings)
        starting = asyncio.create_task(self._engine.start())
        try:
            text = await asyncio.to_thread(kind.load_text, self.settings)
            await starting
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        self._serve(self._engine, text)
        plain = isinstance(text.template, NamedTemplate) and not self.settings.conv_template
        if plain and self._engine.info.generates:
            log.info("the model has no chat template: using plain User:/Assistant: lines")
        await self._keep_alive(self._engine, text)

    async def _keep_alive(self, engine: Engine, text: TextModel) -> None:
        """Start the engine again whenever it has died; returns when that was in vain too often.

        Deaths count up, failed starts included, until an engine has served for a minute.
        """
        deaths, serving_since = 0, self._clock()
        while True:
            reason = await engine.wait_dead()
            log.error("the engine died: %s", reason)
            deaths = 1 if self._clock() - serving_since > _HEALTHY_S else deaths + 1
            self._ready = None
            while True:
                if deaths > MAX_RESTARTS:
                    self._retry_s = None
                    self._enter_state("failed", f"the engine died {deaths} times: {reason}")
                    await engine.close()
                    return
                self._retry_s = _RESTART_PAUSE_S * deaths
                self._enter_state("failed", f"restarting the engine: {reason}")
                await engine.close()
                await asyncio.sleep(self._retry_s)
                self.restarts += 1
                self._engine = engine = self.settings.engine_kind.build(self.settings)
                try:
                    await engine.start()
                    break
                except Exception as error:
                    log.error("the engine cannot be started again: %r", error)
                    reason = f"it cannot be started again: {' '.join(str(error).split())}"
                    deaths += 1
            self._serve(engine, text)
            serving_since = self._clock()

    def _serve(self, engine: Engine, text: TextModel) -> None:
        """Begin to answer."""
        settings, info = self.settings, engine.info
        admission = Admission(
            limit=settings.limit_worker_concurrency,
            capacity=info.capacity,
            max_queue_requests=settings.max_queue_requests,
            max_queue_tokens=settings.max_queue_tokens or _queue_tokens(info),
            clock=self._clock,
        )
        if info.grammars:
            engine.use_tokenizer(text.tokenizer.described)
        self._ready = Ready(engine, info, text, admission)
        self.engine_starts += 1
        self._enter_state("ready", "")
        log.info(
            "serving %s: engine %s, context %d, %s %s",
            ", ".join(settings.served_names),
            info.engine,
            info.context_length,
            info.device,
            info.dtype,
        )


def _another_process() -> TriremeError:
    return TriremeError("wrong_instance", "Another worker process serves this address now.")


def _queue_tokens(info: EngineInfo) -> int:
    """Prompt tokens that may wait: an encoder's context is short, and its tokens are cheap."""
    contexts = _QUEUE_CONTEXTS * info.context_length
    return contexts if info.generates else max(contexts, _ENCODER_QUEUE_TOKENS)
