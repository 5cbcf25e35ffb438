"""The paged engine on a GPU: exact in float32; in half precision equal but for near ties."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from worker.engine.config import EngineConfig
from worker.engine.engine import EngineCore
from worker.engine.protocol import Job, SequenceParams, StepOutput

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

Checkpoint = Callable[[str], Path]
HALF = ["llama", "single", "qwen3", "mistral"]
LENGTHS = [1, 3, 255, 256, 257, 700, 31, 1300, 16, 90]
TIE = 0.1


@dataclass
class Answer:
    """Tokens, and for each how far the best one was ahead of the next."""

    ids: list[int] = field(default_factory=list)
    leads: list[float] = field(default_factory=list)
    cached: int = 0


@pytest.fixture(autouse=True)
def memory_given_back() -> Iterator[None]:
    """An engine's KV pool fills the GPU: the next one needs it."""
    import gc

    import torch

    yield
    gc.collect()
    torch.cuda.empty_cache()


def prompts() -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, 2048) for _ in range(length)] for length in LENGTHS]


def built(folder: Path, **values: Any) -> Any:
    from worker.model.build import build

    values = {"dtype": "bfloat16", "device": "cuda", "kv_cache_gb": 0.5, **values}
    config = EngineConfig(model_path=str(folder), **values)
    made = build(config, lambda _text: None, num_threads=4)
    assert made.info.engine == "paged"
    return made


def answers(core: EngineCore, texts: list[list[int]], max_tokens: int = 24) -> list[Answer]:
    """Greedy answers to all texts at once."""
    found = {str(number): Answer() for number in range(len(texts))}
    for number, text in enumerate(texts):
        params = SequenceParams(max_tokens=max_tokens + number, temperature=0.0, logprobs=2)
        core.submit(Job(str(number), text, params))
    while core.has_work:
        for job_id, output in core.step():
            assert isinstance(output, StepOutput)
            own = found[job_id]
            own.ids += output.ids
            own.cached = output.cached_tokens
            for raw in output.logprobs or []:
                own.leads.append(raw.top[0][1] - raw.top[1][1])
    return list(found.values())


def assert_same(one: list[Answer], other: list[Answer]) -> None:
    """Equal up to the first place where two tokens were as good as equal; few have any."""
    ties = 0
    for number, (left, right) in enumerate(zip(one, other, strict=True)):
        assert len(left.ids) == len(right.ids)
        differing = [
            at for at, pair in enumerate(zip(left.ids, right.ids, strict=True)) if len({*pair}) > 1
        ]
        if differing:
            ties += 1
            at = differing[0]
            lead = min(left.leads[at], right.leads[at])
            assert lead < TIE, f"text {number} differs at {at}, where the best token led by {lead}"
    assert ties <= len(one) // 2


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_float32_gives_the_tokens_of_generate(name: str, checkpoint: Checkpoint) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    texts = prompts()
    core = built(checkpoint(name), dtype="float32").core
    found = [answer.ids for answer in answers(core, texts)]
    model = AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float32).cuda()
    for number, (text, ids) in enumerate(zip(texts, found, strict=True)):
        tokens = torch.tensor([text], device="cuda")
        expected = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=24 + number,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert ids == expected[0, len(text) :].tolist()


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_flash_attention_is_chosen_and_gives_the_logits_of_transformers(
    name: str, dtype: str, checkpoint: Checkpoint
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from worker.model.attention import Span
    from worker.model.attention_varlen import VarlenAttention

    runner = built(checkpoint(name), dtype=dtype).core.runner
    assert isinstance(runner._attention.backend, VarlenAttention)
    text = prompts()[7][:900]
    model = AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float32).cuda()
    with torch.inference_mode():
        expected = model(torch.tensor([text], device="cuda")).logits[0]
    parts = []
    for start, end in ((0, 500), (500, 899), (899, 900)):
        span = Span(start, end - start, [2, 0, 3, 1])
        parts.append(runner.logits(text[start:end], [span], range(end - start)).float())
    off = (torch.cat(parts) - expected).norm() / expected.norm()
    assert off < 0.03


@pytest.mark.parametrize("name", HALF)
def test_graphs_and_overlap_change_no_token(name: str, checkpoint: Checkpoint) -> None:
    plain = answers(built(checkpoint(name), enforce_eager=True, overlap="off").core, prompts())
    for values in (
        {"enforce_eager": True, "overlap": "on"},
        {"enforce_eager": False, "overlap": "off"},
        {"enforce_eager": False, "overlap": "on"},
    ):
        made = built(checkpoint(name), **values)
        graphs = made.core.runner.graphs
        assert (graphs is None) == values["enforce_eager"]
        assert_same(answers(made.core, prompts()), plain)
        if graphs is not None:
            assert graphs._works
            assert graphs._graphs


def test_graphs_are_recorded_for_longer_sequences_too(checkpoint: Checkpoint) -> None:
    made = built(checkpoint("llama"))
    before = len(made.core.runner.graphs._graphs)
    answers(made.core, [prompts()[7]])
    assert len(made.core.runner.graphs._graphs) > before


def test_a_shared_prefix_is_found_and_changes_no_token(checkpoint: Checkpoint) -> None:
    core = built(checkpoint("llama")).core
    text = prompts()[7]
    [cold] = answers(core, [text])
    [warm] = answers(core, [text])
    assert (cold.cached, warm.cached) == (0, len(text) // 256 * 256)
    assert_same([warm], [cold])


def test_sampled_tokens_depend_on_the_seed_alone(checkpoint: Checkpoint) -> None:
    core = built(checkpoint("llama"), dtype="float32").core

    def run(extra: int) -> list[int]:
        params = SequenceParams(max_tokens=40, temperature=0.8, top_p=0.9, seed=5)
        core.submit(Job("a", prompts()[6], params))
        for number in range(extra):
            other = SequenceParams(max_tokens=50, temperature=1.0, seed=number)
            core.submit(Job(f"other{number}", prompts()[1], other))
        ids: list[int] = []
        while core.has_work:
            for job_id, output in core.step():
                if job_id == "a":
                    ids += output.ids
        return ids

    assert run(0) == run(7)


def test_an_aborted_request_gives_its_blocks_back_and_others_go_on(checkpoint: Checkpoint) -> None:
    core = built(checkpoint("llama")).core
    texts = prompts()
    alone = answers(core, [texts[5]])
    for number, text in enumerate([texts[5], texts[7], texts[8]]):
        params = SequenceParams(max_tokens=24 if number == 0 else 2000, temperature=0.0, logprobs=2)
        core.submit(Job(str(number), text, params))
    kept, steps = Answer(), 0
    while core.has_work:
        for job_id, output in core.step():
            if job_id == "0":
                kept.ids += output.ids
                kept.leads += [raw.top[0][1] - raw.top[1][1] for raw in output.logprobs]
        steps += 1
        if steps == 6:
            core.abort("1")
            core.abort("2")
    assert_same([kept], alone)
    assert core.load().kv_free == 1.0
    assert steps < 60


def test_the_kv_pool_leaves_what_a_step_needs(checkpoint: Checkpoint) -> None:
    import torch

    made = built(checkpoint("llama"), kv_cache_gb=None, gpu_memory_share=0.5, max_batch_tokens=2048)
    free, total = torch.cuda.mem_get_info()
    assert total - free < 0.6 * total
    assert made.info.kv_blocks >= 16
    long = [[3 + at % 2000 for at in range(2040)]] * 4
    assert len(answers(made.core, long)) == 4


def test_too_large_a_step_is_refused_in_words(checkpoint: Checkpoint) -> None:
    from worker.engine.protocol import ModelLoadError

    with pytest.raises(ModelLoadError, match=r"KV pool|--max-batch-tokens"):
        built(checkpoint("llama"), kv_cache_gb=None, gpu_memory_share=0.001)
