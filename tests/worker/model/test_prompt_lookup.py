"""Tokens that were drafted by prompt lookup are those that a model gives one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from tests.worker.model.test_equal_to_transformers import PAGED
from worker.engine.config import EngineConfig
from worker.engine.engine import EngineCore
from worker.engine.protocol import Job, RawLogprob, SequenceParams, StepOutput
from worker.engine.rates import PrefillPace
from worker.model.build import build
from worker.model.linear_native import NativeProducts

Checkpoint = Callable[[str], Path]
PROMPTS = [[20 + at % period for at in range(length)] for period, length in ((3, 9), (1, 40))]


@pytest.fixture(autouse=True)
def _drafts_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a draft is worth here: a step of these models takes hardly longer than a token."""
    monkeypatch.setattr(
        PrefillPace, "step_tokens", property(lambda self: 40.0 if self._heavy else None)
    )


def engine(folder: Path, dtype: str = "float32", **config: Any) -> EngineCore:
    made = EngineConfig(model_path=str(folder), dtype=dtype, **config)
    core = build(made, lambda _text: None, num_threads=1).core
    assert isinstance(core, EngineCore)
    return core


def run(core: EngineCore, params: dict[str, Any]) -> tuple[list[list[int]], list[list[RawLogprob]]]:
    """Tokens and log probabilities that follow all prompts, computed together."""
    tokens: list[list[int]] = [[] for _ in PROMPTS]
    scores: list[list[RawLogprob]] = [[] for _ in PROMPTS]
    for number, prompt in enumerate(PROMPTS):
        core.submit(Job(str(number), prompt, SequenceParams(seed=number, **params)))
    while core.has_work:
        for job_id, output in core.step():
            assert isinstance(output, StepOutput)
            tokens[int(job_id)] += output.ids
            scores[int(job_id)] += output.logprobs or ()
    return tokens, scores


@pytest.mark.parametrize(
    ("name", "native"), [*((name, True) for name in PAGED), ("llama", False), ("gemma2", False)]
)
def test_drafts_give_the_tokens_of_generate(
    name: str, native: bool, checkpoint: Checkpoint
) -> None:
    """Models with windows, biases, experts: what a layer computes ahead is what it would have."""
    core = engine(checkpoint(name), native_kernels=native)
    found, _scores = run(core, {"max_tokens": 40, "temperature": 0.0})
    model = AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float32)
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        config = GenerationConfig(
            do_sample=False, max_new_tokens=40, eos_token_id=None, pad_token_id=0
        )
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert out[0].tolist()[len(prompt) :] == tokens
    assert core.load().drafted_tokens > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"logprobs": 2},
        {"frequency_penalty": 0.02, "presence_penalty": 0.2, "repetition_penalty": 1.02},
        {"min_tokens": 30, "stop_token_ids": (30, 31)},
        {"top_k": 5, "top_p": 0.9, "min_p": 0.01},
    ],
    ids=lambda more: "+".join(more) or "plain",
)
def test_drawn_tokens_are_the_same_with_and_without_drafts(
    dtype: str, more: dict[str, Any], checkpoint: Checkpoint, request: pytest.FixtureRequest
) -> None:
    """Each position has its own noise, penalties count what was drafted before it, and its log
    probabilities are its own. Few tokens are likely, so texts repeat themselves."""
    if dtype == "bfloat16":
        request.getfixturevalue("native_products")  # there are no drafts without
    bias = tuple((token, 6.0 + token % 3) for token in (29, 30, 31, 32))
    params = {"max_tokens": 60, "temperature": 0.9, "logit_bias": bias, **more}
    with_drafts = engine(checkpoint("qwen2"), dtype)
    without = engine(checkpoint("qwen2"), dtype, prompt_lookup="off")
    tokens, scores = run(with_drafts, params)
    expected, expected_scores = run(without, params)
    assert tokens == expected
    assert with_drafts.load().accepted_tokens > 10
    assert without.load().drafted_tokens == 0
    for found, wanted in zip(scores, expected_scores, strict=True):
        assert len(found) == len(wanted) == (60 if "logprobs" in more else 0)
        for one, other in zip(found, wanted, strict=True):
            assert one.token_id == other.token_id
            assert [id for id, _value in one.top] == [id for id, _value in other.top]
            assert math.isclose(one.logprob or 0, other.logprob or 0, abs_tol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "config", "drafts"),
    [
        ("bfloat16", {"native_kernels": False}, False),  # a row's result depends on the others
        ("bfloat16", {"native_kernels": False, "prompt_lookup": "on"}, True),
        ("float32", {"native_kernels": False}, True),
        ("float32", {"prompt_lookup": "off"}, False),
        ("float32", {"overlap": "on"}, False),
    ],
)
def test_drafts_are_made_where_they_change_nothing(
    dtype: str, config: dict[str, Any], drafts: bool, checkpoint: Checkpoint
) -> None:
    core = engine(checkpoint("qwen2"), dtype, **config)
    run(core, {"max_tokens": 20, "temperature": 0.0, "logit_bias": ((30, 50.0),)})
    assert (core.load().drafted_tokens > 0) == drafts


def test_bfloat16_drafts_where_the_layers_are_the_engines_own(
    checkpoint: Checkpoint, native_products: NativeProducts
) -> None:
    """Their results are the same to the bit, whatever is computed beside a token."""
    del native_products  # they exist
    for name, drafts in (("qwen2", True), ("gemma2", False)):
        core = engine(checkpoint(name), "bfloat16")
        run(core, {"max_tokens": 20, "temperature": 0.0, "logit_bias": ((30, 50.0),)})
        assert (core.load().drafted_tokens > 0) == drafts


def test_a_beam_search_runs_beside_drafts(checkpoint: Checkpoint) -> None:
    """It has none; the others are as if they were alone."""
    core = engine(checkpoint("llama"))
    alone, _scores = run(core, {"max_tokens": 40, "temperature": 0.0})
    core = engine(checkpoint("llama"))
    beam = SequenceParams(max_tokens=20, temperature=0.0, beam_width=2)
    core.submit(Job("beam", PROMPTS[0], beam))
    texts: list[list[int]] = [[] for _ in PROMPTS]
    for number, prompt in enumerate(PROMPTS):
        core.submit(Job(str(number), prompt, SequenceParams(max_tokens=40, temperature=0.0)))
    while core.has_work:
        for job_id, output in core.step():
            assert isinstance(output, StepOutput)
            if job_id != "beam":
                texts[int(job_id)] += output.ids
    assert texts == alone
    assert core.load().drafted_tokens > 0
