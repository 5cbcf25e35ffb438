"""Greedy tokens in float32 equal transformers' own `generate`, one by one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from worker.engine.blocks import BlockPool
from worker.engine.config import EngineConfig
from worker.engine.engine import EngineCore
from worker.engine.protocol import Job, PromptOutput, SequenceParams, StepOutput
from worker.model import generate
from worker.model.attention_choice import GATHER_BLOCK_SIZE as BLOCK_SIZE
from worker.model.build import Built, build
from worker.model.generate import GenerateCore
from worker.model.kernels import Kernels

PAGED = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "opt",
    "gpt_neox",
    "olmo2",
    "mixtral",
    "qwen2_moe",
]
LENGTHS = [1, 3, 15, 16, 17, 33, 60, 7, 25, 2, 140, 16, 31, 5, 40, 12]


def prompts() -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, 384) for _ in range(length)] for length in LENGTHS]


def reference(folder: Path, number_of_tokens: Callable[[int], int]) -> list[list[int]]:
    """What `generate` gives for each prompt, alone."""
    seq2seq = folder.name == "t5"
    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32)
    found = []
    for number, prompt in enumerate(prompts()):
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=number_of_tokens(number),
            eos_token_id=2,
            pad_token_id=0,
            decoder_start_token_id=0,
        )
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        found.append(out[0].tolist()[1 if seq2seq else len(prompt) :])
    return found


def run(core: EngineCore | GenerateCore, number_of_tokens: Callable[[int], int]) -> list[list[int]]:
    """All prompts at once through an engine's core."""
    found: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts()):
        params = SequenceParams(
            max_tokens=number_of_tokens(number), temperature=0.0, stop_token_ids=(2,)
        )
        core.submit(Job(str(number), prompt, params))
        found[str(number)] = []
    while core.has_work:
        for job_id, output in core.step():
            assert isinstance(output, StepOutput)
            assert output.pos == len(found[job_id])
            found[job_id] += output.ids
    return list(found.values())


def built(folder: Path, *, native: bool = True) -> Built:
    config = EngineConfig(model_path=str(folder), dtype="float32", native_kernels=native)
    return build(config, lambda _text: None, num_threads=1)


def tight(made: Built) -> EngineCore:
    """The same model with so few blocks and so small a budget that all must share."""
    assert isinstance(made.core, EngineCore)
    runner = made.core.runner
    attention = runner._attention  # type: ignore[attr-defined]
    attention.backend.allocate(attention.layers, 16)
    return EngineCore(runner, BlockPool(16, BLOCK_SIZE), max_running=16, max_batch_tokens=23)


@pytest.mark.parametrize(
    ("name", "native"), [*((name, True) for name in PAGED), ("qwen3", False), ("gemma2", False)]
)
def test_16_requests_at_once_give_the_tokens_of_generate(
    name: str, native: bool, checkpoint: Callable[[str], Path]
) -> None:
    """Mixed lengths in one batch; then with preemption and prefills cut at 23 tokens a step."""

    def number_of_tokens(number: int) -> int:
        return 4 + 2 * number

    made = built(checkpoint(name), native=native)
    expected = reference(checkpoint(name), number_of_tokens)
    assert made.info.engine == "paged"
    assert run(made.core, number_of_tokens) == expected
    small = tight(made)
    assert run(small, number_of_tokens) == expected
    assert small.load().preemptions > 0
    assert small.load().kv_free == 1.0


def test_kernels_that_compute_nonsense_are_found_and_not_used(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a compiler's fault would make them."""
    monkeypatch.setattr(Kernels, "rotate", lambda *_arguments: None)
    made = built(checkpoint("qwen2"))
    assert made.info.engine == "paged"
    assert run(made.core, lambda _number: 6) == reference(checkpoint("qwen2"), lambda _number: 6)


@pytest.mark.parametrize("name", ["t5", "mamba", "longcat"])
def test_the_plain_engine_gives_the_tokens_of_generate(
    name: str, checkpoint: Callable[[str], Path]
) -> None:
    made = built(checkpoint(name))
    assert made.info.engine == "generate"
    assert run(made.core, lambda _number: 6) == reference(checkpoint(name), lambda _number: 6)


def test_a_shared_prefix_is_found_and_changes_no_token(
    checkpoint: Callable[[str], Path],
) -> None:
    made = built(checkpoint("llama"))
    prompt = [5 + at % 300 for at in range(70)]
    params = SequenceParams(max_tokens=9, temperature=0.0)
    runs = []
    for job_id in ("cold", "warm"):
        made.core.submit(Job(job_id, prompt, params))
        outputs = []
        while made.core.has_work:
            outputs += [output for _job, output in made.core.step()]
        runs.append(outputs)
    cold, warm = runs
    assert [output.ids for output in cold] == [output.ids for output in warm]  # type: ignore[union-attr]
    assert cold[0].cached_tokens == 0  # type: ignore[union-attr]
    assert warm[0].cached_tokens == 64  # type: ignore[union-attr]


def test_prompt_logprobs_are_those_of_a_plain_forward(checkpoint: Callable[[str], Path]) -> None:
    """Also when the prefill is cut into chunks."""
    small = tight(built(checkpoint("qwen2")))
    prompt = prompts()[6]
    small.submit(Job("a", prompt, SequenceParams(max_tokens=1, prompt_logprobs=2)))
    outputs = []
    while small.has_work:
        outputs += [output for _job, output in small.step()]
    model = AutoModelForCausalLM.from_pretrained(checkpoint("qwen2"), dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    scored = outputs[0].logprobs  # type: ignore[union-attr]
    assert scored is not None
    assert scored[0].logprob is None
    assert [one.token_id for one in scored] == prompt
    for at, one in enumerate(scored[1:]):
        assert one.logprob == pytest.approx(expected[at, prompt[at + 1]].item(), abs=1e-4)
        assert [token for token, _value in one.top] == expected[at].topk(2).indices.tolist()


@pytest.mark.parametrize("name", ["gemma2", "mamba"])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_plain_engine_scores_prompts_in_pieces(
    name: str, rows: int, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of so many rows of logits."""
    monkeypatch.setattr(generate, "_LOGITS_AT_ONCE", rows * 384)
    config = EngineConfig(model_path=str(checkpoint(name)), dtype="float32", engine="generate")
    made = build(config, lambda _text: None, num_threads=1)
    prompt = prompts()[6][:21]
    params = SequenceParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
    made.core.submit(Job("a", prompt, params))
    [(_job, scored), _token] = made.core.step()
    assert isinstance(scored, PromptOutput)
    model = AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert [one.token_id for one in scored.logprobs] == prompt
    assert scored.logprobs[0].logprob is None
    for at, one in enumerate(scored.logprobs[1:]):
        assert one.logprob == pytest.approx(expected[at, prompt[at + 1]].item(), abs=1e-4)


def test_a_seed_decides_whatever_runs_beside(checkpoint: Callable[[str], Path]) -> None:
    """Several choices of one request, alone, in a full batch, and with preemption."""
    made = built(checkpoint("qwen2"))
    params = SequenceParams(max_tokens=20, temperature=1.0, top_p=0.9, seed=5, logprobs=0)
    job = Job("seeded", prompts()[4], params, n=4)

    def texts(core: EngineCore | GenerateCore, beside: int) -> list[list[int]]:
        for number, prompt in enumerate(prompts()[:beside]):
            own = SequenceParams(max_tokens=5 + number, temperature=0.8, seed=number)
            core.submit(Job(str(number), prompt, own))
        core.submit(job)
        found: list[list[int]] = [[] for _ in range(job.n)]
        while core.has_work:
            for job_id, output in core.step():
                if job_id == job.job_id:
                    assert isinstance(output, StepOutput)
                    found[output.index] += output.ids
        return found

    alone = texts(made.core, 0)
    assert len({tuple(text) for text in alone}) == 4
    assert texts(made.core, 16) == alone
    small = tight(made)
    assert texts(small, 16) == alone
    assert small.load().preemptions > 0


def test_embeddings_are_the_mean_of_the_last_hidden_state(
    checkpoint: Callable[[str], Path],
) -> None:
    made = built(checkpoint("gemma3"))
    inputs = [prompts()[6], prompts()[1], prompts()[0]]
    model = AutoModelForCausalLM.from_pretrained(checkpoint("gemma3"), dtype=torch.float32)
    with torch.inference_mode():
        for found, tokens in zip(made.embed(inputs), inputs, strict=True):
            hidden = model.model(torch.tensor([tokens])).last_hidden_state[0]
            assert found == pytest.approx(hidden.mean(0).tolist(), abs=1e-4)


def test_an_encoder_embeds_and_does_not_generate(checkpoint: Callable[[str], Path]) -> None:
    made = built(checkpoint("bert"))
    assert not made.info.generates
    tokens = prompts()[6]
    model = AutoModel.from_pretrained(checkpoint("bert"), dtype=torch.float32)
    with torch.inference_mode():
        hidden = model(torch.tensor([tokens])).last_hidden_state[0]
    [found] = made.embed([tokens])
    assert found == pytest.approx(hidden.mean(0).tolist(), abs=1e-5)
