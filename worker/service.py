"""The request path: a typed request in, typed events out. Knows no HTTP.

`Started` or `Failed` comes first, exactly one of `Done` and `Failed` last. Whatever a request
holds is released in `finally` blocks when its generator ends or is closed, so closing the
generator is the one way to cancel.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from protocol.errors import TriremeError
from protocol.generation import (
    Begun,
    Delta,
    DetokenizeRequest,
    DetokenizeResponse,
    Done,
    Event,
    Failed,
    FinishReason,
    GenerateRequest,
    Prompt,
    SamplingParams,
    Started,
    TokenizeRequest,
    TokenizeResponse,
)
from worker.checks import NATIVE, Manner, Plan, plan
from worker.engine.outputs import Output
from worker.engine.protocol import Job, PromptOutput, StepOutput
from worker.handover import Wait
from worker.metrics import Metrics
from worker.runtime import Ready, Runtime
from worker.text.best_of import BestOf
from worker.text.choice import Choice, readable
from worker.text.prompt import EncodedPrompt, effort_kwargs, thinking_kwargs
from worker.text.reading import FORCED_CALLS, Reading
from worker.text.templates import RenderOptions

log = logging.getLogger(__name__)

_Item = TypeVar("_Item")

_THREAD_ABOVE = 8192
"""Characters or tokens."""
_PROMPT_PIECE = 256
_WHOLE_HOLD_S, _WHOLE_INTERVAL = 1.0, 64
"""Seconds and tokens between two deltas that nobody reads before the answer's end: short against
the longest pause that a gateway takes for life."""
_ALIVE_S = 0.25
"""After so many seconds a sign of life is sent where nothing may be told before the end. It tells
how many tokens were made, so that they count even when nobody waits for the end."""


class Service:
    """Answers requests with the runtime's model."""

    def __init__(self, runtime: Runtime, metrics: Metrics) -> None:
        self._runtime = runtime
        self._metrics = metrics
        self._num_jobs = 0
        # grammars are made one at a time; those that wait hold no thread that others need
        self._grammars = ThreadPoolExecutor(1, thread_name_prefix="grammars")

    # ---- generation -----------------------------------------------------------------------------

    async def generate(
        self, request: GenerateRequest, manner: Manner = NATIVE
    ) -> AsyncGenerator[list[Event], None]:
        """The events of one request, as they come together; close the generator to cancel it."""
        events: list[Event] = []
        try:
            async with aclosing(self._generate(request, manner)) as batches:
                async for events in batches:
                    yield events
        except TriremeError as error:
            self._metrics.failed(error.code)
            became = "ended" if events else "refused"
            log.info("request %s: %s", became, f"{error.code} {error.param or ''}".rstrip())
            yield [Failed.of(error)]
        except TimeoutError:
            self._metrics.failed("deadline_exceeded")
            message = f"The request took longer than its deadline of {request.deadline_s:g} s."
            yield [Failed("deadline_exceeded", message)]
        except Exception:
            log.exception("request failed")
            self._metrics.failed("internal_error")
            yield [Failed("internal_error", "The worker failed to process the request.")]
        except (GeneratorExit, asyncio.CancelledError):
            if not events or not isinstance(events[-1], Done):
                self._metrics.cancelled.inc()
            raise

    async def _generate(
        self, request: GenerateRequest, manner: Manner
    ) -> AsyncGenerator[list[Event], None]:
        arrived = time.monotonic()
        until = _loop_time(request.deadline_s)
        ready = self._runtime.require(request.model, request.instance_id, request.digest)
        with self._runtime.request(request.gateway):
            async with asyncio.timeout_at(until):
                prompt = await self._encode(ready, request)
                grammar = await self._grammar(ready, request)
            made = self._plan(ready, request, prompt, grammar, manner)
            begun = request.resume or ()
            num_tokens = len(prompt.ids) + sum(len(choice.ids) for choice in begun)
            place = ready.admission.enter(
                num_tokens,
                request.sampling.num_sequences,
                request.priority,
                request.tenant,
                admitted=request.admitted,
            )
            resumable = manner.resumable
            with place as ticket, self._runtime.handover.request(resumable=resumable) as wait:
                started = Started(
                    len(prompt.ids), self._runtime.instance_id, ready.digest, made.params.seed
                )
                if request.echo and made.params.prompt_logprobs is None and not begun:
                    yield [started, Prompt(prompt.ids, prompt.text)]
                else:
                    yield [started]
                async with asyncio.timeout_at(until):
                    with wait:
                        await ticket.wait_turn()
                self._metrics.queue_s.observe(time.monotonic() - arrived)
                job = self._job(request, prompt, made, until)
                if not begun:  # else the worker that began has counted it
                    self._metrics.prompt_tokens.inc(len(prompt.ids))
                run = _Run(self._metrics, ready, job, made, prompt, arrived)
                run.replay(begun)
                if not job.choices:
                    yield [run.done()]
                    return
                stream = run.events(_hold_s(request, made), ticket.first_output, wait)
                if made.n > request.sampling.n:
                    stream = _best(stream, request.sampling, run.alive)
                try:
                    async with aclosing(stream) as batches:
                        async for events in batches:
                            yield events
                finally:
                    ticket.generated = run.num_tokens

    def _plan(
        self,
        ready: Ready,
        request: GenerateRequest,
        prompt: EncodedPrompt,
        grammar: str | None,
        manner: Manner,
    ) -> Plan:
        if not ready.info.generates:
            message = f"The model `{request.model}` does not generate text."
            raise TriremeError("unsupported_by_model", message, param="model")
        return plan(
            request,
            prompt,
            ready.info,
            ready.text.template,
            grammar=grammar,
            reading=_reading(ready, request, prompt),
            manner=manner,
            interval=max(self._runtime.settings.stream_interval, _WHOLE_INTERVAL * request.whole),
            draw_seed=self._runtime.draw_seed,
        )

    def _job(
        self, request: GenerateRequest, prompt: EncodedPrompt, made: Plan, until: float | None
    ) -> Job:
        self._num_jobs += 1
        left = None if until is None else max(0.001, until - asyncio.get_running_loop().time())
        return Job(
            job_id=f"{self._num_jobs}:{request.request_id}",
            prompt_ids=prompt.ids,
            params=made.params,
            n=made.n,
            priority=request.priority,
            deadline_s=left,
            cache_salt=request.cache_salt,
            tenant=request.tenant,
            begun=[None if one.ended else one.ids for one in request.resume or ()],
        )

    async def _grammar(self, ready: Ready, request: GenerateRequest) -> str | None:
        """What the answer is held to; made beside the event loop."""
        structure = request.structure
        if structure is None:
            return None
        if not ready.info.grammars:
            message = f"The engine {ready.info.engine} has no structured output."
            # tools are fine as long as no call is forced
            param = "tool_choice" if structure.kind == "tools" else structure.param
            raise TriremeError("unsupported_by_model", message, param=param)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._grammars, ready.structures.grammar, structure)

    async def _encode(self, ready: Ready, request: GenerateRequest) -> EncodedPrompt:
        """Prompt ids; a long text is tokenized beside the event loop."""
        if request.suffix is not None:
            return await self._encode_gap(ready, request, request.suffix)
        if request.prompt_ids is not None:
            return ready.text.encode_ids(request.prompt_ids, ready.info.vocab_size)
        if request.prompt is not None:
            return await self._encode_text(
                ready, request.prompt, add_special_tokens=request.add_special_tokens
            )
        return await self._encode_messages(ready, request.messages or [], _options(ready, request))

    async def _encode_text(
        self, ready: Ready, text: str, *, add_special_tokens: bool
    ) -> EncodedPrompt:
        encode = partial(ready.text.encode_prompt, text, add_special_tokens=add_special_tokens)
        return await _fitting(len(text), encode)

    async def _encode_gap(
        self, ready: Ready, request: GenerateRequest, suffix: str
    ) -> EncodedPrompt:
        prefix: str | list[int] = request.prompt or ""
        if request.prompt_ids is not None:
            prefix = ready.text.encode_ids(request.prompt_ids, ready.info.vocab_size).ids
        special = request.add_special_tokens
        encode = partial(ready.text.encode_gap, prefix, suffix, add_special_tokens=special)
        return await _fitting(len(prefix) + len(suffix), encode)

    async def _encode_messages(
        self,
        ready: Ready,
        messages: list[dict[str, Any]],
        options: RenderOptions,
        *,
        add_special_tokens: bool = False,
    ) -> EncodedPrompt:
        encode = partial(
            ready.text.encode_messages, messages, options, add_special_tokens=add_special_tokens
        )
        return await _fitting(sum(map(_length, messages)), encode)

    # ---- tokens ---------------------------------------------------------------------------------

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResponse:
        """Ids of a rendered prompt or of messages; an empty prompt may have none.

        Raises:
            TriremeError: as in `generate`; `missing_required_parameter` when both are missing.
        """
        ready = self._runtime.require(request.model, request.instance_id, request.digest)
        tokenizer = ready.text.tokenizer
        special = request.add_special_tokens
        if request.messages is not None:
            options = _options(ready, request)
            encoded = await self._encode_messages(
                ready, request.messages, options, add_special_tokens=bool(special)
            )
            ids = encoded.ids
        elif request.prompt:
            encoded = await self._encode_text(
                ready, request.prompt, add_special_tokens=special is not False
            )
            ids = encoded.ids
        elif request.prompt == "":
            ids = tokenizer.encode("", add_special_tokens=special is not False)
        else:
            raise TriremeError(
                "missing_required_parameter", "Give prompt or messages.", param="prompt"
            )
        spelled = ids if request.entries else []
        entries = await _fitting(len(spelled), lambda: list(map(tokenizer.entry, spelled)))
        return TokenizeResponse(
            ids=ids,
            context_length=ready.info.context_length,
            entries=entries if request.entries else None,
        )

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeResponse:
        """The text of ids, special tokens included.

        Raises:
            TriremeError: `invalid_value` for an id that is not in the vocabulary.
        """
        ready = self._runtime.require(request.model, request.instance_id, request.digest)
        ids = request.ids
        size = ready.info.vocab_size
        if ids and max(ids) >= size:
            message = f"Token id {max(ids)} is not below the vocabulary size {size}."
            raise TriremeError("invalid_value", message, param="tokens")

        def text() -> str:
            return ready.text.tokenizer.decode(ids, skip_special_tokens=False)

        return DetokenizeResponse(text=await _fitting(len(ids), text))


class _Run:
    """One admitted request: engine outputs to events. State of this request only."""

    def __init__(
        self,
        metrics: Metrics,
        ready: Ready,
        job: Job,
        made: Plan,
        prompt: EncodedPrompt,
        arrived: float,
    ) -> None:
        self._metrics = metrics
        self._ready = ready
        self._job = job
        self._prompt = prompt
        self._arrived = arrived
        self._choices = [Choice(i, ready.text.tokenizer, made.text) for i in range(job.n)]
        self._unfinished = len(job.choices)
        self._first = min((index for index, _ in job.choices), default=0)
        self._last_token_at: list[float | None] = [None] * job.n
        self._began = False
        self._told_s = arrived
        self._cached_tokens = 0
        self._scored = 0
        self._searched = 0

    @property
    def num_tokens(self) -> int:
        """Completion tokens so far, over all choices."""
        return sum(choice.num_tokens for choice in self._choices)

    def alive(self) -> list[Event]:
        """A sign of life with the tokens so far; nothing when there was one a moment ago."""
        now_s = time.monotonic()
        if now_s - self._told_s < _ALIVE_S:
            return []
        self._told_s = now_s
        return [Delta(0, 0, [], "", generated=max(self.num_tokens, self._searched))]

    def replay(self, begun: Sequence[Begun]) -> None:
        """Bring the choices to where another worker left them.

        Raises:
            TriremeError: `invalid_value` when the tokens cannot be so.
        """
        vocab_size = self._ready.info.vocab_size
        for choice, one in zip(self._choices, begun, strict=False):
            try:
                if any(token_id >= vocab_size for token_id in one.ids):
                    raise ValueError(f"token ids are below {vocab_size}")
                if not one.ended and len(one.ids) >= self._job.params.max_tokens:
                    raise ValueError("there are max_tokens of them already")
                choice.replay(one.ids, ended=one.ended)
            except ValueError as error:
                message = f"The choices cannot be resumed: {error}."
                raise TriremeError("invalid_value", message, param="resume") from error

    async def events(
        self, hold_s: float, begun: Callable[[], None], wait: Wait
    ) -> AsyncGenerator[list[Event], None]:
        """Deltas as they are due, then `Done`.

        Args:
            hold_s: see `Engine.submit`.
            begun: called when the engine has given something.
            wait: around each wait for the engine, so that a handover can end it.

        Raises:
            TriremeError: the engine failed the job, or it is handed over. TimeoutError: the
                deadline passed.
        """
        async with aclosing(self._ready.engine.submit(self._job, hold_s)) as batches:
            while True:
                try:
                    with wait:
                        outputs = await anext(batches)
                except StopAsyncIteration:
                    break
                begun()
                for scored in outputs:
                    if not isinstance(scored, PromptOutput):
                        break
                    for piece in self._prompt_events(scored):
                        yield [piece]
                        await asyncio.sleep(0)
                events = self._deltas(outputs)
                if self._job.params.beam_width and not events:
                    # each output is a step, which makes every text longer
                    self._searched += self._job.n * len(outputs)
                    events = self.alive()
                if not self._unfinished:
                    yield [*events, self.done()]
                    return
                if events:
                    yield events
        raise TriremeError("engine_dead", "The engine ended a request too early.")

    def _deltas(self, outputs: Sequence[Output]) -> list[Event]:
        """What these outputs give."""
        deltas: list[Event] = []
        fresh: dict[int, int] = {}
        for output in outputs:
            if isinstance(output, PromptOutput) or not (output.ids or output.finish):
                continue
            index = output.index
            choice = self._choices[index]
            if choice.finish is not None:
                continue
            before = choice.num_tokens
            delta = choice.feed(output)
            if delta is not None:
                deltas.append(delta)
            if index == self._first:  # the others find the prompt that this one computed
                self._cached_tokens = output.cached_tokens
            fresh[index] = fresh.get(index, 0) + choice.num_tokens - before
            if choice.finish is not None:
                self._finish(choice, choice.finish, output)
        self._observe(fresh)
        return deltas

    def _finish(self, choice: Choice, reason: FinishReason, output: StepOutput) -> None:
        self._unfinished -= 1
        self._metrics.finished(reason)
        if choice.stopped_by_text and output.finish is None:
            self._ready.engine.abort(self._job.job_id, output.index)

    def done(self) -> Done:
        """The end of the request, and what is counted of it."""
        # what goes on finds completion tokens in the cache, too
        cached = min(self._cached_tokens, len(self._prompt.ids))
        self._metrics.request_s.observe(time.monotonic() - self._arrived)
        self._metrics.prefix_queries.inc(len(self._prompt.ids))
        self._metrics.prefix_hits.inc(cached)
        return Done(
            prompt_tokens=len(self._prompt.ids),
            completion_tokens=self.num_tokens,
            cached_tokens=cached,
            reasoning_tokens=sum(choice.reasoning_tokens for choice in self._choices),
        )

    def _prompt_events(self, output: PromptOutput) -> Iterator[Prompt]:
        """The prompt in pieces, so that no long one holds up an event loop; the first has the text.

        Each is made when it is asked for.
        """
        tokenizer, text = self._ready.text.tokenizer, self._prompt.text
        for at in range(0, len(output.logprobs), _PROMPT_PIECE):
            logprobs = [
                readable(raw, tokenizer) for raw in output.logprobs[at : at + _PROMPT_PIECE]
            ]
            first, self._scored = self._scored, self._scored + len(logprobs)
            yield Prompt(self._prompt.ids[first : self._scored], "" if first else text, logprobs)

    def _observe(self, fresh: Mapping[int, int]) -> None:
        """Count new tokens by choice; they share the time since the choice's last ones."""
        now = time.monotonic()
        for index, tokens in fresh.items():
            last = self._last_token_at[index]
            if last is not None:
                self._metrics.inter_token_s.observe((now - last) / tokens, tokens)
            elif not self._began:
                self._began = True
                self._metrics.first_token_s.observe(now - self._arrived)
            self._last_token_at[index] = now
            self._metrics.generation_tokens.inc(tokens)


async def _best(
    stream: AsyncGenerator[list[Event], None],
    sampling: SamplingParams,
    alive: Callable[[], list[Event]],
) -> AsyncGenerator[list[Event], None]:
    """The same events with the deltas of the best choices alone, before `Done`, and with signs of
    life until then."""
    held = BestOf(sampling.n, shows_logprobs=sampling.logprobs is not None)
    async with aclosing(stream) as batches:
        async for events in batches:
            held.hold(event for event in events if isinstance(event, Delta))
            others: list[Event] = [event for event in events if not isinstance(event, Delta)]
            if events and isinstance(events[-1], Done):
                yield [*held.best(), *others]
            elif others:
                yield others
            elif signs := alive():
                yield signs


def _options(ready: Ready, request: GenerateRequest | TokenizeRequest) -> RenderOptions:
    """How a conversation becomes a prompt."""
    kwargs = {
        **effort_kwargs(ready.text, request.reasoning_effort),
        **thinking_kwargs(ready.text, request.thinking),
        **request.chat_template_kwargs,
    }
    return RenderOptions(
        request.add_generation_prompt, request.continue_final_message, kwargs, request.tools
    )


def _reading(ready: Ready, request: GenerateRequest, prompt: EncodedPrompt) -> Reading | None:
    """How the answers are taken apart; what a grammar shaped is an answer as it is, or calls."""
    if request.structure is not None:
        return FORCED_CALLS if request.structure.kind == "tools" else None
    if not request.parse or ready.text.format is None:
        return None
    return ready.text.format.reading(
        prompt.text, request.tools, parallel=request.parallel_tool_calls
    )


def _hold_s(request: GenerateRequest, made: Plan) -> float:
    """How long tokens may be kept back: never where a stop string could end the text early."""
    return _WHOLE_HOLD_S if request.whole and not made.text.stops else 0.0


def _loop_time(deadline_s: float | None) -> float | None:
    return None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s


async def _fitting(size: int, work: Callable[[], _Item]) -> _Item:
    """The result of `work`, done beside the event loop where its input is large."""
    return await asyncio.to_thread(work) if size > _THREAD_ABOVE else work()


def _length(value: Any) -> int:
    """Characters in a message, roughly."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_length, value.values()))
    return sum(map(_length, value)) if isinstance(value, list) else 0
