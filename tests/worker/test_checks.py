from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocol import conversation
from protocol.errors import TriremeError
from protocol.generation import GenerateRequest, SamplingParams
from worker.checks import NATIVE, Manner, Plan, plan
from worker.engine.protocol import EngineInfo
from worker.text.prompt import EncodedPrompt
from worker.text.templates import NamedTemplate

INFO = EngineInfo(
    "paged", context_length=100, eos_token_ids=(9,), vocab_size=50, capacity=4, beams=True
)


def planned(prompt_tokens: int = 10, param: str = "prompt", **fields: Any) -> Plan:
    conv_stops = fields.pop("conv_stops", False)
    manner = fields.pop("manner", NATIVE)
    info = fields.pop("info", INFO)
    ends = fields.pop("ends", ())
    request = GenerateRequest(
        request_id="r",
        model="m",
        prompt="x",
        conv_stops=conv_stops,
        sampling=SamplingParams(**fields),
    )
    prompt = EncodedPrompt([1] * prompt_tokens, "x", param, context=(1,), ends=ends)
    template = NamedTemplate(conversation.plain())
    return plan(request, prompt, info, template, manner=manner, interval=1, draw_seed=lambda: 77)


def refusal(**fields: Any) -> TriremeError:
    with pytest.raises(TriremeError) as caught:
        planned(**fields)
    return caught.value


def test_max_tokens_defaults_to_the_room_that_is_left() -> None:
    assert planned().params.max_tokens == 90
    assert planned(max_tokens=90).params.max_tokens == 90


def test_scores_of_the_prompt_are_bounded_over_all_choices() -> None:
    assert planned(prompt_tokens=90, n=128, prompt_logprobs=20, max_tokens=1)
    long = EngineInfo("sim", context_length=40_000, eos_token_ids=(), vocab_size=50, capacity=4)

    def scored(n: int) -> Plan:
        sampling = SamplingParams(n=n, prompt_logprobs=4, max_tokens=1)
        request = GenerateRequest(request_id="r", model="m", prompt="x", sampling=sampling)
        prompt = EncodedPrompt([1] * 20_000, "x", "prompt", context=(1,))
        template = NamedTemplate(conversation.plain())
        return plan(
            request, prompt, long, template, manner=NATIVE, interval=1, draw_seed=lambda: 77
        )

    assert scored(10).params.prompt_logprobs == 4
    with pytest.raises(TriremeError, match="1100000, above the limit of 1000000") as caught:
        scored(11)
    assert caught.value.param == "logprobs"


def test_more_than_the_context_is_too_large() -> None:
    error = refusal(max_tokens=101)
    assert (error.code, error.param) == ("invalid_value", "max_tokens")
    assert error.message == (
        "max_tokens is too large: 101. This model supports at most 100 completion tokens, "
        "whereas you provided 101."
    )


def test_a_prompt_longer_than_the_context_is_refused_in_openais_words() -> None:
    error = refusal(prompt_tokens=120, param="messages")
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    assert error.message.startswith(
        "This model's maximum context length is 100 tokens. However, your messages resulted in "
        "120 tokens."
    )


def test_prompt_and_completion_must_fit_together() -> None:
    error = refusal(prompt_tokens=20, max_tokens=81)
    assert (error.code, error.param) == ("context_length_exceeded", "prompt")
    assert "101 tokens (20 in the prompt, 81 in the completion)" in error.message
    assert refusal(prompt_tokens=100).code == "context_length_exceeded"
    assert planned(prompt_tokens=99).params.max_tokens == 1


@pytest.mark.parametrize("key", ["abc", "50", "-1", "999999999", "", "²", "1.0", "9" * 5000])
def test_a_bias_for_no_token_is_refused(key: str) -> None:
    error = refusal(logit_bias={key: 1.0})
    assert (error.code, error.param) == ("invalid_value", "logit_bias")
    assert len(error.message) < 300


def test_biases_become_pairs() -> None:
    assert planned(logit_bias={"49": 5.0, "0": -1.0}).params.logit_bias == ((49, 5.0), (0, -1.0))


def test_end_of_sequence_stops_unless_ignored() -> None:
    assert planned(stop_token_ids=[3]).params.stop_token_ids == (9, 3)
    ignored = planned(stop_token_ids=[3], ignore_eos=True).params
    assert (ignored.stop_token_ids, ignored.eos_token_ids) == ((3,), (9,))


def test_a_prompts_own_ends_stop_as_the_end_of_sequence_does() -> None:
    params = planned(ends=(4,), stop_token_ids=[3]).params
    assert (params.stop_token_ids, params.eos_token_ids) == ((9, 4, 3), (9, 4))
    assert planned(ends=(4,), ignore_eos=True).params.stop_token_ids == ()


def test_only_requested_stop_tokens_are_reported() -> None:
    assert planned(stop_token_ids=[3, 9]).text.reported_stop_ids == {3}


def test_the_templates_stops_are_added_for_chat_alone() -> None:
    assert planned(stop=["x"]).text.stops == ("x",)
    assert planned(stop=["x"], conv_stops=True).text.stops == ("x", "\nUser:", "\nAssistant:")


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.0}, {"temperature": 1e-6}, {"top_p": 0.0, "temperature": 1.5}]
)
def test_greedy_is_temperature_zero(fields: dict[str, float]) -> None:
    params = planned(**fields).params
    assert (params.temperature, params.top_p) == (0.0, 1.0)


def test_top_k_zero_is_off() -> None:
    assert planned(top_k=0).params.top_k == -1


def test_a_seed_is_drawn_when_none_is_given() -> None:
    assert planned().params.seed == 77
    assert planned(seed=0).params.seed == 0


def test_best_of_generates_more_and_needs_what_ranks_them() -> None:
    made = planned(best_of=3, n=2)
    assert (made.n, made.params.logprobs, made.params.beam_width) == (3, 0, 0)
    assert planned(best_of=3, n=2, logprobs=4).params.logprobs == 4
    same = planned(best_of=2, n=2)
    assert (same.n, same.params.logprobs) == (2, None)
    assert refusal(best_of=1, n=2).param == "best_of"


def test_beam_search_has_a_width_and_gives_n() -> None:
    made = planned(use_beam_search=True, n=2, best_of=5, length_penalty=0.5)
    assert (made.n, made.params.beam_width, made.params.length_penalty) == (2, 5, 0.5)
    assert (made.params.temperature, made.params.logprobs) == (0.0, None)
    assert planned(use_beam_search=True, n=16).params.beam_width == 16


def test_a_search_with_one_beam_is_greedy() -> None:
    params = planned(use_beam_search=True, temperature=1.0).params
    assert (params.beam_width, params.temperature) == (0, 0.0)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n": 17}, "n", "integer_above_max_value"),
        ({"top_p": 0.9}, "top_p", "unsupported_parameter"),
        ({"top_k": 5}, "top_k", "unsupported_parameter"),
        ({"min_p": 0.1}, "min_p", "unsupported_parameter"),
        ({"stop": ["x"]}, "stop", "unsupported_parameter"),
        ({"n": 16, "stop_token_ids": list(range(40))}, "n", "invalid_value"),
    ],
)
def test_what_does_not_go_with_beam_search_is_named(
    fields: dict[str, Any], param: str, code: str
) -> None:
    error = refusal(use_beam_search=True, **fields)
    assert (error.param, error.code) == (param, code)


def test_an_engine_without_beams_refuses_them() -> None:
    error = refusal(use_beam_search=True, info=replace(INFO, beams=False))
    assert (error.param, error.code) == ("use_beam_search", "unsupported_by_model")


def test_a_dialect_may_have_max_tokens_cut_to_the_room() -> None:
    cut = Manner(cut_max_tokens=True)
    assert planned(max_tokens=1000, manner=cut).params.max_tokens == 90
    assert planned(max_tokens=5, manner=cut).params.max_tokens == 5
    assert refusal(prompt_tokens=100, max_tokens=5, manner=cut).code == "context_length_exceeded"


def test_a_dialect_may_decode_the_completion_on_its_own() -> None:
    assert planned().text.context == (1,)
    assert planned(manner=Manner(detached=True)).text.context == ()
