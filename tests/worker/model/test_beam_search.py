"""Beam search in float32 equals transformers' own, whatever runs beside it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from worker.engine.blocks import BlockPool
from worker.engine.config import EngineConfig
from worker.engine.engine import EngineCore
from worker.engine.protocol import Job, SequenceParams, StepOutput
from worker.model.attention_choice import GATHER_BLOCK_SIZE as BLOCK_SIZE
from worker.model.build import Built, build

STOPS = tuple(range(2, 40))
"""So many that random weights meet them."""


def prompt_of(length: int) -> list[int]:
    rng = random.Random(length)
    return [rng.randrange(40, 384) for _ in range(length)]


def built(folder: Path, overlap: str = "off") -> Built:
    config = EngineConfig(model_path=str(folder), dtype="float32", overlap=overlap)
    return build(config, lambda _text: None, num_threads=1)


def core_of(made: Built, *, overlap: bool = False, **sizes: int) -> EngineCore:
    """The same model with a pool and bounds of these sizes."""
    runner = made.core.runner  # type: ignore[union-attr]
    attention = runner._attention  # type: ignore[attr-defined]
    attention.backend.allocate(attention.layers, sizes["num_blocks"])
    return EngineCore(
        runner,
        BlockPool(sizes["num_blocks"], BLOCK_SIZE),
        max_running=sizes["max_running"],
        max_batch_tokens=sizes["max_batch_tokens"],
        overlap=overlap,
    )


def job_of(length: int, width: int, n: int, max_tokens: int, **fields: Any) -> Job:
    params = SequenceParams(
        **{
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stop_token_ids": STOPS,
            "beam_width": width,
            **fields,
        }
    )
    return Job(f"{length} {width} {n} {fields}", prompt_of(length), params, n=n)


JOBS = [
    job_of(17, width=4, n=4, max_tokens=24),
    job_of(3, width=2, n=1, max_tokens=33, length_penalty=0.0),
    job_of(40, width=5, n=3, max_tokens=20, length_penalty=2.0),
    job_of(16, width=3, n=3, max_tokens=30, stop_token_ids=()),
    job_of(1, width=16, n=16, max_tokens=9),
    job_of(31, width=4, n=2, max_tokens=25, length_penalty=-1.0),
    job_of(33, width=3, n=2, max_tokens=18, repetition_penalty=1.4),
    job_of(50, width=4, n=4, max_tokens=26, min_tokens=12),
    job_of(60, width=2, n=2, max_tokens=1),
]


def expected_of(folder: Path) -> dict[str, list[list[int]]]:
    """What `generate` gives for each job, alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None  # the jobs' own stops count alone
    return {job.job_id: reference(model, job) for job in JOBS}


def reference(model: Any, job: Job) -> list[list[int]]:
    params = job.params
    config = GenerationConfig(
        do_sample=False,
        num_beams=params.beam_width,
        num_return_sequences=job.n,
        early_stopping=False,
        length_penalty=params.length_penalty,
        repetition_penalty=params.repetition_penalty,
        max_new_tokens=params.max_tokens,
        min_new_tokens=params.min_tokens or None,
        eos_token_id=list(params.stop_token_ids) or None,
        pad_token_id=2,
    )
    ids = torch.tensor([job.prompt_ids])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    found = [row[len(job.prompt_ids) :] for row in out.tolist()]
    ends = [[at for at, one in enumerate(row) if one in params.stop_token_ids] for row in found]
    return [row[: end[0] + 1] if end else row for row, end in zip(found, ends, strict=True)]


def run(core: EngineCore) -> tuple[dict[str, list[list[int]]], dict[str, list[int]]]:
    """All jobs at once, and greedy ones between them; the choices of each."""
    beams: dict[str, list[list[int]]] = {}
    others: dict[str, list[int]] = {}
    for number, job in enumerate(JOBS):
        beams[job.job_id] = []
        core.submit(job)
        other = Job(f"greedy {number}", prompt_of(5 + 7 * number), SequenceParams(max_tokens=12))
        others[other.job_id] = []
        core.submit(other)
    while core.has_work:
        for job_id, output in core.step():
            assert isinstance(output, StepOutput)
            if job_id in others:
                others[job_id] += output.ids
            elif output.finish:
                assert output.index == len(beams[job_id])
                assert output.pos == 0
                assert (output.finish == "stop") == (output.stop_token is not None)
                beams[job_id].append(output.ids)
    assert core.load().kv_free == 1.0
    return beams, others


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "qwen2_moe"])
def test_the_texts_are_those_of_generate(name: str, checkpoint: Callable[[str], Path]) -> None:
    """With room for all; then with so little that beams lose their blocks and compute again."""
    made = built(checkpoint(name))
    assert made.info.beams
    expected = expected_of(checkpoint(name))
    ends = [ids[-1] in STOPS for texts in expected.values() for ids in texts]
    assert any(ends)
    assert not all(ends)
    wide = core_of(made, num_blocks=400, max_running=64, max_batch_tokens=512)
    beams, others = run(wide)
    assert beams == expected
    assert wide.load().preemptions == 0
    tight = core_of(made, num_blocks=12, max_running=7, max_batch_tokens=23)
    beams, also = run(tight)
    assert beams == expected
    assert also == others
    assert tight.load().preemptions > 0


def test_overlapped_steps_change_no_text(checkpoint: Callable[[str], Path]) -> None:
    made = built(checkpoint("qwen3"), overlap="on")
    core = core_of(made, overlap=True, num_blocks=60, max_running=20, max_batch_tokens=200)
    assert run(core)[0] == expected_of(checkpoint("qwen3"))
