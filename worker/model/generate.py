"""The plain engine: transformers' own `generate`, one sequence at a time, token by token.

For models that the paged engine cannot run: encoder-decoders, state-space models, attention of
their own. `generate` runs in a thread; a logits processor hands each step's logits to our sampler
and forces the token it chose, so every sampling parameter means the same as on the paged engine.
"""

from __future__ import annotations

import copy
import inspect
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from worker.engine.engine import BAD_LOGITS, JobFailed, Output, step_output
from worker.engine.fairness import FairQueue
from worker.engine.faults import FAILED, NO_MEMORY, EngineBroken, OutOfMemory
from worker.engine.protocol import EngineLoad, Job, PromptOutput, RawLogprob, SequenceParams
from worker.engine.rates import Rate
from worker.engine.sequence import Sequence, sequences_of
from worker.engine.steps import RowResult
from worker.model.border import border
from worker.model.loader import LoadedModel
from worker.model.pooling import pooled
from worker.model.sampler import Choice, prompt_logprobs, sample

log = logging.getLogger(__name__)

_LOGITS_AT_ONCE: Final = 2**26
_WARM_UP_TOKENS: Final = 2


class GenerateCore:
    """One sequence at a time over `model.generate`; same interface as the paged core.

    Args:
        loaded: the model; of an encoder nothing is asked here.
        clock: seconds, monotonic.
    """

    def __init__(self, loaded: LoadedModel, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._loaded = loaded
        self._clock = clock
        self._waiting: FairQueue[Sequence] = FairQueue()
        self._current: _Run | None = None
        self._arrivals = 0
        self._steps = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._out_of_memory = 0
        self._decode_rate = Rate()

    @property
    def has_work(self) -> bool:
        """Whether `step` would have anything to do."""
        return self._current is not None or len(self._waiting) > 0

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._arrivals += 1
        self._prompt_tokens += len(job.prompt_ids)
        for seq in sequences_of(job, self._arrivals, self._clock()):
            self._waiting.add(seq.tenant, (seq.priority, seq.arrival, seq.index), seq)

    def abort(self, job_id: str, index: int | None = None) -> None:
        """End a job, or one choice of it; what is unknown or already ended is no error."""

        def meant(seq: Sequence) -> bool:
            return seq.job_id == job_id and index in (None, seq.index)

        self._waiting.discard({id(seq) for seq in self._waiting if meant(seq)})
        if self._current is not None and meant(self._current.seq):
            self._end()

    def step(self) -> list[tuple[str, Output]]:
        """One token of the current sequence; outputs with the id of their job."""
        self._steps += 1
        outputs = self._drop_expired()
        if self._current is None:
            if not self._waiting:
                return outputs
            seq = self._waiting.pop()
            self._waiting.charge_prompt(seq.tenant, seq.num_tokens)
            if seq.wants_prompt_logprobs:
                try:
                    with border(self._loaded.device):
                        outputs += self._score_prompt(seq)
                except Exception as error:
                    return outputs + self._fail_raised(seq, error)
                if isinstance(outputs[-1][1], JobFailed):
                    return outputs
            self._current = _Run(self._loaded, seq)
        run, started = self._current, self._clock()
        choice = run.next()
        if isinstance(choice, Exception):
            return outputs + self._fail_raised(run.seq, choice)
        if choice.token_id is None:
            return outputs + self._fail(run.seq, "bad_logits", BAD_LOGITS)
        run.seq.append(choice.token_id)
        self._decode_rate.add(1, self._clock() - started)
        self._generation_tokens += 1
        self._waiting.charge_generated(run.seq.tenant, 1)
        outputs.append(
            (run.seq.job_id, step_output(run.seq, RowResult(choice.token_id, choice.logprob)))
        )
        if run.seq.finish:
            self._end()
        return outputs

    def warm_up(self) -> None:
        """Generate a little, so that what is made at first use is there before a request comes."""
        params = SequenceParams(max_tokens=_WARM_UP_TOKENS, temperature=0.0)
        run = _Run(self._loaded, sequences_of(Job("warm-up", [1], params), 0, 0.0)[0])
        for _ in range(_WARM_UP_TOKENS):
            choice = run.next()
            if isinstance(choice, Exception):
                log.warning("the model fails on the first text", exc_info=choice)
            if isinstance(choice, Exception) or choice.token_id is None:
                break
            run.seq.append(choice.token_id)
        run.close()

    @torch.inference_mode()
    def embed(self, inputs: list[list[int]]) -> list[list[float]]:
        """Vectors from the (encoder's) last hidden states, float32, one input at a time."""
        model = self._loaded.model
        model = model.get_encoder() if self._loaded.kind == "seq2seq" else model.base_model
        states = []
        for tokens in inputs:
            ids = torch.tensor([tokens], device=self._loaded.device)
            states.append(model(input_ids=ids).last_hidden_state[0])
        return pooled(states, self._loaded.pooling)

    def load(self) -> EngineLoad:
        """The load now."""
        return EngineLoad(
            running=int(self._current is not None),
            waiting=len(self._waiting),
            waiting_tokens=sum(seq.num_tokens for seq in self._waiting),
            decode_tps=self._decode_rate.value,
            step=self._steps,
            busy=self.has_work,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            out_of_memory=self._out_of_memory,
        )

    def _end(self) -> None:
        if self._current is not None:
            self._current.close()
            self._current = None

    def _fail_raised(self, seq: Sequence, error: Exception) -> list[tuple[str, Output]]:
        """Fail the job whose computation raised.

        Raises:
            EngineBroken: it was that.
        """
        if isinstance(error, EngineBroken):
            raise error
        if isinstance(error, OutOfMemory):
            self._out_of_memory += 1
            return self._fail(seq, "out_of_memory", NO_MEMORY)
        log.error("job %s failed", seq.job_id, exc_info=error)
        return self._fail(seq, "internal_error", FAILED)

    def _fail(self, seq: Sequence, code: str, message: str) -> list[tuple[str, Output]]:
        self._end()
        self.abort(seq.job_id)
        return [(seq.job_id, JobFailed(code, message))]

    def _drop_expired(self) -> list[tuple[str, Output]]:
        now = self._clock()
        seqs = list(self._waiting)
        if self._current is not None:
            seqs.append(self._current.seq)
        late = dict.fromkeys(
            seq.job_id for seq in seqs if seq.deadline is not None and seq.deadline <= now
        )
        for job_id in late:
            self.abort(job_id)
        reason = "the request's deadline passed before it was finished"
        return [(job_id, JobFailed("deadline_exceeded", reason)) for job_id in late]

    @torch.inference_mode()
    def _score_prompt(self, seq: Sequence) -> list[tuple[str, Output]]:
        if self._loaded.kind != "causal":
            self.abort(seq.job_id)
            reason = "log probabilities of the prompt do not exist for an encoder-decoder model"
            return [(seq.job_id, JobFailed("unsupported_by_model", reason))]
        scored = [RawLogprob(seq.token_ids[0], None)]
        for start, logits in self._prompt_logits(seq.token_ids):
            targets = seq.token_ids[start + 1 : start + 1 + len(logits)]
            num_top = seq.params.prompt_logprobs or 0
            scored += prompt_logprobs(logits, targets, num_top)
        return [(seq.job_id, PromptOutput(scored))]

    def _prompt_logits(self, token_ids: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """Logits [positions, vocab] of all positions but the last, in pieces: from which on, and
        they. The model runs once for each, as all together may be larger than the memory."""
        model, last = self._loaded.model, len(token_ids) - 1
        ids = torch.tensor([token_ids], device=self._loaded.device)
        size = max(1, _LOGITS_AT_ONCE // self._loaded.vocab_size)
        if last <= size or "logits_to_keep" not in inspect.signature(model.forward).parameters:
            if last:
                yield 0, model(input_ids=ids, use_cache=False).logits[0, :-1]
            return
        for start in range(0, last, size):
            kept = torch.arange(start, min(start + size, last), device=ids.device)
            yield start, model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits[0]


class _Closed(Exception):
    """Ends `generate` in its thread when no more tokens are wanted."""


class _Run:
    """One `generate` call in a thread, advanced a token at a time by `next`."""

    def __init__(self, loaded: LoadedModel, seq: Sequence) -> None:
        self.loaded, self.seq = loaded, seq
        self._chosen: queue.Queue[Choice | Exception] = queue.Queue(1)
        self._go = threading.Semaphore(0)
        self._closed = False
        self._started = False
        self._thread = threading.Thread(target=self._generate, name="generate", daemon=True)

    def next(self) -> Choice | Exception:
        """The next token, or what went wrong."""
        if self._started:
            self._go.release()
        else:
            self._started = True
            self._thread.start()
        return self._chosen.get()

    def close(self) -> None:
        """End the thread; it waits between tokens, so this takes no step."""
        self._closed = True
        self._go.release()
        if self._started:
            self._thread.join()

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """Hand over logits [1, vocab]; returns them with all but the chosen token forbidden."""
        choice = sample(scores, [self.seq])[0]
        self._chosen.put(choice)
        self._go.acquire()
        if self._closed or choice.token_id is None:
            raise _Closed
        forced = torch.full_like(scores, float("-inf"))
        forced[0, choice.token_id] = 0.0
        return forced

    def _inputs(self) -> list[tuple[str, list[int]]]:
        """The prompt and, for a sequence that goes on, what it has already."""
        ids, prompt_len = self.seq.token_ids, self.seq.prompt_len
        if self.loaded.kind != "seq2seq" or len(ids) == prompt_len:
            return [("input_ids", ids), ("attention_mask", [1] * len(ids))]
        start = self.loaded.model.generation_config.decoder_start_token_id
        if start is None:
            start = self.loaded.model.config.decoder_start_token_id
        return [
            ("input_ids", ids[:prompt_len]),
            ("attention_mask", [1] * prompt_len),
            ("decoder_input_ids", [start, *ids[prompt_len:]]),
        ]

    def _config(self) -> Any:
        config = copy.deepcopy(self.loaded.model.generation_config)
        config.update(
            do_sample=False,
            num_beams=1,
            max_length=None,
            max_new_tokens=self.seq.params.max_tokens + 1,
            min_length=0,
            min_new_tokens=None,
            eos_token_id=None,
            pad_token_id=0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
        )
        return config

    def _generate(self) -> None:
        device = self.loaded.device
        try:
            with border(device), torch.inference_mode():
                self.loaded.model.generate(
                    **{name: torch.tensor([ids]).to(device) for name, ids in self._inputs()},
                    generation_config=self._config(),
                    logits_processor=LogitsProcessorList([_Chooser(self)]),
                )
            raise RuntimeError("generate ended before the sequence did")  # so that nobody waits
        except _Closed:
            return
        except Exception as error:
            self._chosen.put(error)


class _Chooser(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed for us
    """The logits processor through which a run sees the logits."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        return self._run.choose(scores)
