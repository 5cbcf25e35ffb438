"""From a wire request and its prompt ids to parameters that the engine can take. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from protocol.errors import TriremeError, quoted
from protocol.generation import MAX_BEAMS, GenerateRequest, SamplingParams, not_in_beam_search
from worker.engine.protocol import EngineInfo, SequenceParams
from worker.text.choice import TextOptions
from worker.text.prompt import EncodedPrompt
from worker.text.reading import Reading
from worker.text.templates import ChatTemplate

_GREEDY_BELOW = 1e-5
MAX_PROMPT_SCORES: Final = 1_000_000
"""Log probabilities of prompt tokens in one answer, over all its choices: about 25 MB of JSON."""


@dataclass(frozen=True, slots=True)
class Manner:
    """Where a dialect differs from the native wire.

    Attributes:
        cut_max_tokens: more tokens than there is room for are cut to it, not refused.
        detached: the completion is decoded as a text of its own, so that a SentencePiece model's
            first word has no space before it.
        resumable: the caller can have another worker go on with the answer.
    """

    cut_max_tokens: bool = False
    detached: bool = False
    resumable: bool = True


NATIVE: Final = Manner()


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that is valid for this model.

    Attributes:
        params: for the engine. n: choices that it generates.
        text: for each choice.
    """

    params: SequenceParams
    n: int
    text: TextOptions


def plan(
    request: GenerateRequest,
    prompt: EncodedPrompt,
    info: EngineInfo,
    template: ChatTemplate,
    *,
    grammar: str | None = None,
    reading: Reading | None = None,
    manner: Manner,
    interval: int,
    draw_seed: Callable[[], int],
) -> Plan:
    """Check the request against the model and complete its parameters.

    Raises:
        TriremeError: 400, naming the offending value and the limit.
    """
    sampling = request.sampling
    beam_width = _beam_width(request, info)
    ranked = not sampling.use_beam_search and sampling.num_sequences > sampling.n
    if grammar is not None and sampling.min_tokens:
        message = "min_tokens does not go with structured output, which decides where it ends."
        raise TriremeError("invalid_value", message, param="min_tokens")
    if sampling.prompt_logprobs is not None and not info.scores_prompts:
        message = "Log probabilities of the prompt do not exist for an encoder-decoder model."
        param = "logprobs" if request.echo else "prompt_logprobs"
        raise TriremeError("unsupported_by_model", message, param=param)
    _check_prompt_scores(sampling, len(prompt.ids))
    max_tokens = _max_tokens(sampling.max_tokens, prompt, info.context_length, manner)
    asked_ids = tuple(sampling.stop_token_ids)
    if request.conv_stops:
        asked_ids += template.stop_token_ids
    eos_ids = () if sampling.ignore_eos else (*info.eos_token_ids, *prompt.ends)
    stops = (*sampling.stop, *(template.stops if request.conv_stops else ()))
    if grammar is not None:
        stops = asked_ids = ()  # the grammar ends the text: cut, it is not what was asked for
    greedy = sampling.use_beam_search or sampling.temperature < _GREEDY_BELOW or sampling.top_p == 0
    return Plan(
        SequenceParams(
            max_tokens=max_tokens,
            min_tokens=min(sampling.min_tokens, max_tokens),
            temperature=0.0 if greedy else sampling.temperature,
            top_p=1.0 if greedy else sampling.top_p,
            top_k=sampling.top_k or -1,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            logit_bias=_logit_bias(sampling.logit_bias, info.vocab_size),
            seed=draw_seed() if sampling.seed is None else sampling.seed,
            stop_token_ids=tuple(dict.fromkeys((*eos_ids, *asked_ids))),
            eos_token_ids=(*info.eos_token_ids, *prompt.ends),
            logprobs=0 if ranked and sampling.logprobs is None else sampling.logprobs,
            # what goes on has told its prompt
            prompt_logprobs=None if request.resume else sampling.prompt_logprobs,
            grammar=grammar,
            beam_width=beam_width,
            length_penalty=sampling.length_penalty,
        ),
        sampling.num_sequences if ranked else sampling.n,
        TextOptions(
            stops=stops,
            include_stop=sampling.include_stop_str_in_output,
            min_tokens=sampling.min_tokens,
            skip_special_tokens=sampling.skip_special_tokens,
            reported_stop_ids=frozenset(asked_ids) - frozenset(info.eos_token_ids),
            interval=interval,
            eager=not request.whole,
            context=() if manner.detached else prompt.context,
            reading=reading,
        ),
    )


def check_fits(prompt: EncodedPrompt, max_tokens: int, context_length: int) -> None:
    """Whether prompt and completion fit the context.

    Raises:
        TriremeError: `context_length_exceeded`, in OpenAI's words.
    """
    used = len(prompt.ids)
    if used + max_tokens <= context_length:
        return
    noun = "messages" if prompt.param == "messages" else "prompt"
    limit = f"This model's maximum context length is {context_length} tokens. However, "
    if used > context_length:
        rest = f"your {noun} resulted in {used} tokens. Please reduce the length of the {noun}."
    else:
        rest = (
            f"you requested {used + max_tokens} tokens ({used} in the {noun}, {max_tokens} in the "
            f"completion). Please reduce the length of the {noun} or completion."
        )
    raise TriremeError("context_length_exceeded", limit + rest, param=prompt.param)


def _check_prompt_scores(sampling: SamplingParams, prompt_tokens: int) -> None:
    """Each choice repeats the scored prompt, so a small request could ask for a huge answer."""
    if sampling.prompt_logprobs is None:
        return
    scores = sampling.n * prompt_tokens * (1 + sampling.prompt_logprobs)
    if scores > MAX_PROMPT_SCORES:
        raise TriremeError(
            "invalid_value",
            f"{sampling.n} choices with {1 + sampling.prompt_logprobs} log probabilities for each "
            f"of {prompt_tokens} prompt tokens are {scores}, above the limit of "
            f"{MAX_PROMPT_SCORES}.",
            param="logprobs",
        )


def _max_tokens(
    asked: int | None, prompt: EncodedPrompt, context_length: int, manner: Manner
) -> int:
    room = context_length - len(prompt.ids)
    if manner.cut_max_tokens and asked is not None:
        asked = max(1, min(asked, room))
    if asked is not None and asked > context_length:
        raise TriremeError(
            "invalid_value",
            f"max_tokens is too large: {asked}. This model supports at most {context_length} "
            f"completion tokens, whereas you provided {asked}.",
            param="max_tokens",
        )
    check_fits(prompt, 1 if asked is None else asked, context_length)
    return room if asked is None else asked


def _logit_bias(asked: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    biases = []
    for key, bias in asked.items():
        if not (key.isascii() and key.isdigit() and len(key) < 12 and int(key) < vocab_size):
            message = (
                f"logit_bias: '{quoted(key)}' is not a token id of this model; ids are whole "
                f"numbers below {vocab_size}."
            )
            raise TriremeError("invalid_value", message, param="logit_bias")
        biases.append((int(key), bias))
    return tuple(biases)


def _beam_width(request: GenerateRequest, info: EngineInfo) -> int:
    """Beams of the search, 0 for none; a search with one beam is greedy decoding."""
    sampling = request.sampling
    if sampling.best_of is not None and sampling.best_of < sampling.n:
        message = f"best_of {sampling.best_of} is less than n, {sampling.n}."
        raise TriremeError("invalid_value", message, param="best_of")
    if not sampling.use_beam_search:
        return 0
    if not info.beams:
        message = f"The engine {info.engine} has no beam search."
        raise TriremeError("unsupported_by_model", message, param="use_beam_search")
    structure = request.structure
    misfit = not_in_beam_search(sampling) or (structure.param if structure else None)
    if misfit is not None:
        message = f"{misfit} does not go with beam search."
        raise TriremeError("unsupported_parameter", message, param=misfit)
    width = sampling.num_sequences
    if width > MAX_BEAMS:
        message = f"Beam search keeps at most {MAX_BEAMS} beams, not {width}."
        raise TriremeError("integer_above_max_value", message, param="n")
    if width + len(sampling.stop_token_ids) + len(info.eos_token_ids) > info.vocab_size:
        message = f"The vocabulary of {info.vocab_size} tokens is too small for {width} beams."
        raise TriremeError("invalid_value", message, param="n")
    return width if width > 1 else 0
