"""OpenAI requests become requests of the native wire. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.errors import TriremeError
from protocol.fleet import ModelRecord
from protocol.generation import (
    EmbedRequest,
    GenerateRequest,
    SamplingParams,
    TokenizeRequest,
)
from protocol.openai import (
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    EmbeddingsRequest,
)
from protocol.texts import TokenizationRequest


def chat_request(
    request: ChatCompletionRequest, *, request_id: str, deadline_s: float, cache_salt: str
) -> GenerateRequest:
    """One request; a text in place of messages (FastChat's /api/v1) is a rendered prompt."""
    messages: list[ChatMessage] | str = request.messages
    rendered = messages if isinstance(messages, str) else None
    going_on = request.continue_final_message
    return GenerateRequest(
        request_id=request_id,
        model=request.model,
        messages=None if isinstance(messages, str) else [_turn(one) for one in messages],
        prompt=rendered,
        add_generation_prompt=request.add_generation_prompt and not going_on,
        continue_final_message=going_on,
        chat_template_kwargs=request.chat_template_kwargs,
        conv_stops=True,
        tools=[dict(tool) for tool in request.tool_use.shown] or None,
        structure=request.structure,
        parse=rendered is None,
        parallel_tool_calls=request.parallel_tool_calls,
        reasoning_effort=request.reasoning_effort,
        sampling=_sampling(
            request, logprobs=(request.top_logprobs or 0) if request.logprobs else None
        ),
        deadline_s=deadline_s,
        cache_salt=cache_salt,
        priority=request.priority,
        whole=not request.stream,
    )


def completion_requests(
    request: CompletionRequest, *, request_id: str, deadline_s: float, cache_salt: str
) -> list[GenerateRequest]:
    """One request a prompt; choice i of prompt p is choice p * n + i of the answer."""
    sampling = _sampling(request, logprobs=request.logprobs)
    if request.echo and request.prompt_logprobs is None:
        # the legacy arrays cover the echoed prompt too
        sampling = sampling.model_copy(update={"prompt_logprobs": request.logprobs})
    return [
        GenerateRequest(
            request_id=f"{request_id}-{number}",
            model=request.model,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_ids=None if isinstance(prompt, str) else prompt,
            suffix=request.suffix or None,
            add_special_tokens=request.add_special_tokens,
            sampling=sampling,
            structure=request.structure,
            echo=request.echo,
            deadline_s=deadline_s,
            cache_salt=cache_salt,
            priority=request.priority,
            whole=not request.stream,
        )
        for number, prompt in enumerate(request.prompt)
    ]


def embed_request(request: EmbeddingsRequest, *, request_id: str, tenant: str = "") -> EmbedRequest:
    return EmbedRequest(
        request_id=request_id,
        tenant=tenant,
        model=request.model,
        inputs=request.input,
        dimensions=request.dimensions,
    )


def tokenize_request(request: TokenizationRequest) -> TokenizeRequest:
    """Messages have the tokens of a chat completion; special ones beside these only when asked."""
    special, going_on = request.add_special_tokens, request.continue_final_message
    messages = None if request.messages is None else [_turn(one) for one in request.messages]
    return TokenizeRequest(
        model=request.model,
        prompt=request.prompt,
        messages=messages,
        add_special_tokens=special if messages is None else special or None,
        add_generation_prompt=request.add_generation_prompt and not going_on,
        continue_final_message=going_on,
        chat_template_kwargs=request.chat_template_kwargs,
        tools=request.tools,
        entries=request.return_token_strs,
    )


def echoed_text(request: ChatCompletionRequest) -> str:
    """What `echo` puts before a chat answer: the last message, when it is the assistant's."""
    messages: list[ChatMessage] | str = request.messages
    if not request.echo or isinstance(messages, str):
        return ""
    last = messages[-1]
    return last.text if last.role == "assistant" else ""


def _sampling(
    request: ChatCompletionRequest | CompletionRequest, *, logprobs: int | None
) -> SamplingParams:
    best_of = request.best_of if isinstance(request, CompletionRequest) else None
    return SamplingParams(
        n=request.n,
        best_of=best_of,
        max_tokens=request.token_limit,
        min_tokens=request.min_tokens,
        temperature=0.0 if request.use_beam_search else request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        length_penalty=request.length_penalty,
        use_beam_search=request.use_beam_search,
        logit_bias=request.logit_bias,
        seed=request.seed,
        stop=request.stop,
        stop_token_ids=request.stop_token_ids,
        include_stop_str_in_output=request.include_stop_str_in_output,
        ignore_eos=request.ignore_eos,
        skip_special_tokens=request.skip_special_tokens,
        logprobs=logprobs,
        prompt_logprobs=request.prompt_logprobs,
    )


def _turn(message: ChatMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.text}
    for name in ("name", "tool_call_id", "reasoning_content"):
        value = getattr(message, name)
        if value is not None:
            turn[name] = value
    if message.tool_calls:
        turn["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    return turn


def check_limits(
    request: ChatCompletionRequest | CompletionRequest, record: ModelRecord | None
) -> None:
    """Refuse more completion tokens than the model has room for.

    Raises:
        TriremeError: `invalid_value` for `max_tokens`.
    """
    check_room(request.token_limit, record, "max_tokens")


def check_room(wanted: int | None, record: ModelRecord | None, param: str) -> None:
    """The same for a limit of tokens that is the field `param` of a request."""
    room = record.context_length if record else 0
    if not room or wanted is None or wanted <= room:
        return
    raise TriremeError(
        "invalid_value",
        f"{param} is too large: {wanted}. This model supports at most {room} completion "
        f"tokens, whereas you provided {wanted}.",
        param=param,
    )


def renamed(error: TriremeError, names: Mapping[str, str]) -> TriremeError:
    """A worker's error with its field named as a dialect's request names it."""
    param = error.param or ""
    field = param.partition(".")[0].partition("[")[0]
    if field not in names:
        return error
    fields = error.to_wire() | {"param": names[field] + param.removeprefix(field)}
    return TriremeError.from_wire(fields)
