"""Overlapped steps, fixed decode shapes and flash attention give the tokens of plain steps."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from worker.engine.blocks import BlockPool
from worker.engine.config import EngineConfig
from worker.engine.engine import EngineCore
from worker.engine.protocol import Job, SequenceParams, StepOutput
from worker.model.attention import AttentionBackend, PagedAttention, Span
from worker.model.attention_gather import GatherAttention
from worker.model.attention_varlen import MODES, Mode, VarlenAttention
from worker.model.build import build
from worker.model.graphs import ROWS, DecodeGraphs
from worker.model.overlap import OverlapRunner
from worker.model.sampler import sample
from worker.model.varlen_plain import plain_varlen

CPU = torch.device("cpu")
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.8},
    {"temperature": 1.2, "top_k": 40, "min_p": 0.02},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.0, "logprobs": 2, "min_tokens": 5},
]


def jobs(longest: int) -> list[Job]:
    rng = random.Random(3)
    shared = [rng.randrange(3, 384) for _ in range(longest - 40)]
    made = []
    for number in range(12):
        own = [rng.randrange(3, 384) for _ in range(rng.randint(1, 40))]
        prompt = shared + own if number % 3 == 0 else own
        kind = KINDS[number % len(KINDS)]
        params = SequenceParams(max_tokens=6 + number, seed=number, stop_token_ids=(2,), **kind)
        made.append(Job(str(number), prompt, params))
    return made


def recorded(run: Callable[[], None]) -> Callable[[], None]:
    """In place of a CUDA graph: the same function of the same tensors."""
    return run


def made(folder: Path, backend: AttentionBackend, num_blocks: int) -> OverlapRunner:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    attention = PagedAttention(backend)
    attention.install(model)
    runner = OverlapRunner(model, attention, CPU)
    runner.logits([1, 2], [Span(0, 2, ())], [0])
    backend.allocate(attention.layers, num_blocks)
    return runner


def tokens(
    runner: OverlapRunner, block_size: int, num_blocks: int, work: list[Job], *, overlap: bool
) -> tuple[dict[str, list[int]], EngineCore]:
    core = EngineCore(
        runner,
        BlockPool(num_blocks, block_size),
        max_running=8,
        max_batch_tokens=50,
        overlap=overlap,
    )
    found: dict[str, list[int]] = {job.job_id: [] for job in work}
    waiting = list(work)
    while waiting or core.has_work:
        for _ in range(3):
            if waiting:
                core.submit(waiting.pop(0))
        for job_id, output in core.step():
            assert isinstance(output, StepOutput)
            assert output.pos == len(found[job_id])
            assert (output.logprobs is not None) == (int(job_id) % len(KINDS) == 4)
            found[job_id] += output.ids
    return found, core


@pytest.fixture(scope="module", params=["llama", "mistral"])
def folder(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Path:
    """A model with full attention, and one with a sliding window."""
    return checkpoint(request.param)


def test_overlapped_steps_give_the_same_tokens(folder: Path) -> None:
    """Also when prefills are cut, prefixes shared and sequences preempted."""
    work = jobs(90)
    runner = made(folder, GatherAttention(), 11)
    expected, _core = tokens(runner, 16, 11, work, overlap=False)
    found, core = tokens(runner, 16, 11, work, overlap=True)
    assert found == expected
    assert core.load().preemptions > 0
    assert core.load().kv_free == 1.0


@pytest.mark.parametrize("mode", [MODES[0], MODES[2]], ids=["paged", "gathered"])
@pytest.mark.parametrize("overlap", [False, True], ids=["alone", "overlapped"])
def test_flash_attention_with_decode_shapes_gives_the_same_tokens(
    folder: Path, mode: Mode, overlap: bool
) -> None:
    work = jobs(330)
    expected, _core = tokens(made(folder, GatherAttention(), 99), 16, 99, work, overlap=False)
    backend = VarlenAttention(plain_varlen, mode)
    runner = made(folder, backend, 16)
    backend.reserve_decode(8, 512, CPU)
    runner.graphs = DecodeGraphs(runner.forward_decode, backend, CPU, 8, recorded)
    recording: list[str] = []
    runner.graphs.warm_up(recording.append)
    assert len(recording) == 4
    found, core = tokens(runner, backend.block_size, 16, work, overlap=overlap)
    assert found == expected
    assert core.load().kv_free == 1.0


def test_a_model_that_cannot_be_recorded_runs_without_graphs(folder: Path) -> None:
    def refuses(run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    work = jobs(90)[:4]
    backend = VarlenAttention(plain_varlen)
    runner = made(folder, backend, 16)
    expected, _core = tokens(runner, backend.block_size, 16, work, overlap=False)
    backend.reserve_decode(8, 512, CPU)
    runner.graphs = DecodeGraphs(runner.forward_decode, backend, CPU, 8, refuses)
    assert tokens(runner, backend.block_size, 16, work, overlap=True)[0] == expected


@pytest.mark.parametrize(
    ("max_rows", "largest"), [(1, 1), (3, 3), (8, 8), (60, 60), (256, 256), (900, 256)]
)
def test_steps_are_padded_to_few_numbers_of_rows(max_rows: int, largest: int) -> None:
    graphs = DecodeGraphs(lambda ids, _at: ids, None, CPU, max_rows, recorded)  # type: ignore[arg-type]
    assert graphs._rows[-1] == largest
    assert graphs._rows[:-1] == [rows for rows in ROWS if rows < largest]


def test_a_token_that_few_ranked_ones_cannot_give_comes_late() -> None:
    """Nearly even logits: top_p reaches beyond those that are ranked at first."""
    from worker.engine.sequence import sequences_of
    from worker.model.sampler import Draw

    params = SequenceParams(max_tokens=9, top_p=0.9, seed=4, logprobs=1)
    greedy = SequenceParams(max_tokens=9, temperature=0.0)
    seqs = [sequences_of(Job("a", [1], one), 0, 0.0)[0] for one in (params, greedy)]
    logits = torch.randn(2, 6000, generator=torch.Generator().manual_seed(0)) * 0.01
    draw = Draw(logits, seqs)
    late, soon = draw.choices()
    assert (late.late, soon.late) == (True, False)
    assert late.token_id is not None
    assert late.logprob is not None
    assert late.logprob.logprob == pytest.approx(
        logits[0].log_softmax(-1)[late.token_id].item(), abs=1e-5
    )
    assert draw.tokens.tolist()[1] == soon.token_id == int(logits[1].argmax())
    assert [choice.token_id for choice in sample(logits, seqs)] == [late.token_id, soon.token_id]


def test_an_engine_built_to_overlap_gives_the_same_tokens(folder: Path) -> None:
    found = []
    for overlap in ("off", "on"):
        config = EngineConfig(model_path=str(folder), dtype="float32", overlap=overlap)
        core = build(config, lambda _text: None, num_threads=1).core
        assert isinstance(core, EngineCore)
        assert isinstance(core.runner, OverlapRunner) == (overlap == "on")
        ids: dict[str, list[int]] = {}
        for job in jobs(90):
            core.submit(job)
            ids[job.job_id] = []
        while core.has_work:
            for job_id, output in core.step():
                assert isinstance(output, StepOutput)
                ids[job_id] += output.ids
        found.append(ids)
    assert found[0] == found[1]
