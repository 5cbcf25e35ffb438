"""A real model whose steps raise what torch raises: nobody gets another token because of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from worker.engine.blocks import BlockPool
from worker.engine.config import EngineConfig
from worker.engine.embedding import EmbedQueue
from worker.engine.engine import EngineCore, JobFailed
from worker.engine.faults import EngineBroken, OutOfMemory
from worker.engine.protocol import Job, PromptOutput, SequenceParams, StepOutput
from worker.model.border import border
from worker.model.build import Built, build
from worker.model.generate import GenerateCore

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("overlap", ["off", "on"])
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.9, "top_p": 0.8},
    "penalties": {"temperature": 1.1, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    "logprobs": {"temperature": 0.7, "logprobs": 2},
    "scored": {"temperature": 0.0, "prompt_logprobs": 1},
    "beams": {"temperature": 0.0, "beam_width": 3},
}
CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4194304 bytes. Error code 12 (Cannot allocate memory)"
)


def jobs() -> list[Job]:
    made = []
    for number, (name, kind) in enumerate([*KINDS.items()] * 2):
        prompt = [3 + (7 * number + at) % 380 for at in range(9 + 11 * number)]
        params = SequenceParams(max_tokens=8 + number, seed=number, **kind)
        made.append(Job(f"{name} {number}", prompt, params, n=2))
    return made


def run(core: EngineCore | GenerateCore, work: list[Job]) -> dict[Any, Any]:
    """What each choice got, or why its job failed; jobs come in one at a step."""
    found: dict[Any, Any] = defaultdict(list)
    waiting = list(work)
    while waiting or core.has_work:
        if waiting:
            core.submit(waiting.pop(0))
        for job_id, output in core.step():
            if isinstance(output, JobFailed):
                found[job_id] = [output.code]
            elif isinstance(output, PromptOutput):
                found[job_id, "prompt"] = [
                    (one.token_id, None if one.logprob is None else round(one.logprob, 4))
                    for one in output.logprobs
                ]
            else:
                assert isinstance(output, StepOutput)
                found[job_id, output.index] += output.ids
                found[job_id, output.index] += [output.finish] if output.finish else []
    return dict(found)


@pytest.fixture(scope="module")
def made(checkpoint: Callable[[str], Path]) -> Callable[[str], Built]:
    """An engine whose core has seen nothing yet; the models are loaded once."""
    loaded: dict[str, Built] = {}

    def get(overlap: str) -> Built:
        if overlap not in loaded:
            config = EngineConfig(
                model_path=str(checkpoint("llama")), dtype="float32", overlap=overlap
            )
            loaded[overlap] = build(config, lambda _text: None, num_threads=1)
        built: Any = loaded[overlap]
        core = EngineCore(
            built.core.runner,
            BlockPool(built.info.kv_blocks, built.info.block_size),
            max_running=64,
            max_batch_tokens=512,
            overlap=overlap == "on",
        )
        return replace(built, core=core)

    return get


@pytest.fixture(scope="module")
def expected(made: Callable[[str], Built]) -> dict[Any, Any]:
    return run(made("off").core, jobs())


def in_attention(
    core: Any, monkeypatch: pytest.MonkeyPatch, fault: Callable[[int], Exception | None]
) -> None:
    """Have the second layer raise what `fault` says of a step of so many tokens."""
    backend = core.runner._attention.backend
    attend = backend.attend

    def faulty(layer: int, query: torch.Tensor, *rest: Any) -> None:
        if layer == 1 and (error := fault(len(query))) is not None:
            raise error
        attend(layer, query, *rest)

    monkeypatch.setattr(backend, "attend", faulty)


@BOTH
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_ALLOCATOR), MemoryError()],
    ids=["CUDA", "CPU", "Python"],
)
def test_steps_for_which_there_is_no_memory(
    made: Callable[[str], Built],
    expected: dict[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    overlap: str,
    error: Exception,
) -> None:
    core = made(overlap).core
    in_attention(core, monkeypatch, lambda num_tokens: error if num_tokens > 6 else None)
    assert run(core, jobs()) == expected
    assert core.load().out_of_memory > 0
    assert core.load().kv_free == 1.0


@BOTH
@pytest.mark.parametrize("each", [4, 9])
def test_steps_that_raise_once(
    made: Callable[[str], Built],
    expected: dict[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    overlap: str,
    each: int,
) -> None:
    """In the middle of a forward, with keys and values of some layers written."""
    core, count = made(overlap).core, 0

    def fault(num_tokens: int) -> Exception | None:
        nonlocal count
        if num_tokens < 4:
            return None  # so that what raises in a batch does not raise alone
        count += 1
        return IndexError("now and then") if count % each == 0 else None

    in_attention(core, monkeypatch, fault)
    found = run(core, jobs())
    lost = {key for key, value in found.items() if value == ["internal_error"]}
    assert {key: found[key] for key in found if key not in lost and key[0] not in lost} == {
        key: value for key, value in expected.items() if key[0] not in lost
    }
    assert len(lost) <= 2, "a long prefill that raised alone too"
    assert core.load().kv_free == 1.0


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_logits_that_are_not_finite(
    made: Callable[[str], Built],
    expected: dict[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    overlap: str,
    kind: str,
) -> None:
    """From the third token on; the keys and values are not finite either."""
    core: Any = made(overlap).core
    runner, bad = (
        core.runner,
        Job("bad", [9] * 20, SequenceParams(max_tokens=9, seed=3, **KINDS[kind]), n=2),
    )
    forward = runner._forward

    def faulty(ids: torch.Tensor, spans: Sequence[Any], kept: Sequence[int]) -> torch.Tensor:
        logits = forward(ids, spans, kept).clone()
        ends = [seq.block_table for seq in core._jobs.get("bad", ()) if seq.num_tokens > 21]
        offset, rows = 0, []
        for span in spans:
            if any(span.blocks is blocks for blocks in ends):
                rows += [row for row, at in enumerate(kept) if 0 <= at - offset < span.length]
            offset += span.length
        logits[rows] = float("nan")
        return logits

    monkeypatch.setattr(runner, "_forward", faulty)
    work = jobs()
    found = run(core, [*work[:4], bad, *work[4:]])
    assert found.pop("bad") == ["bad_logits"]
    assert {key: value for key, value in found.items() if key[0] != "bad"} == expected
    assert core.load().kv_free == 1.0


def test_embeddings_that_find_no_memory_together_are_computed_apart(
    made: Callable[[str], Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = made("off")
    inputs = [[5 + at] * (3 + at) for at in range(6)]
    whole = built.embed(inputs)
    error = RuntimeError(CPU_ALLOCATOR)
    in_attention(built.core, monkeypatch, lambda num_tokens: error if num_tokens > 10 else None)
    queue = EmbedQueue(built.embed, 1000)
    queue.add(0, inputs)
    [(_call, vectors)] = queue.step()
    assert torch.allclose(torch.tensor(vectors), torch.tensor(whole), atol=1e-5)
    queue.add(1, [[7] * 30])
    queue.add(2, [[7] * 3])
    ended = dict(queue.step())
    assert isinstance(ended[1], OutOfMemory)
    assert isinstance(ended[2], list)


def test_the_plain_engine_fails_a_request_alone(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(model_path=str(checkpoint("llama")), dtype="float32", engine="generate")
    core = build(config, lambda _text: None, num_threads=1).core
    assert isinstance(core, GenerateCore)
    assert core.load().prompt_tokens == 0, "what warmed it up does not count"
    params = SequenceParams(max_tokens=5, temperature=0.0)
    work = [Job(str(length), [length] * length, params) for length in (3, 40, 50, 5)]
    expected = run(core, work)
    inner = core._loaded.model.base_model
    forward = inner.forward

    def faulty(input_ids: torch.Tensor, **rest: Any) -> Any:
        if input_ids.shape[1] == 40:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if input_ids.shape[1] == 50:
            raise KeyError("50")
        return forward(input_ids=input_ids, **rest)

    monkeypatch.setattr(inner, "forward", faulty)
    found = run(core, work)
    assert found.pop("40") == ["out_of_memory"]
    assert found.pop("50") == ["internal_error"]
    assert found == {key: expected[key] for key in (("3", 0), ("5", 0))}
    assert core.load().out_of_memory == 1


def test_the_plain_engine_serves_tenants_in_turn(checkpoint: Callable[[str], Path]) -> None:
    config = EngineConfig(model_path=str(checkpoint("llama")), dtype="float32", engine="generate")
    core = build(config, lambda _text: None, num_threads=1).core
    assert isinstance(core, GenerateCore)
    params = SequenceParams(max_tokens=2, temperature=0.0)
    for number in range(10):
        core.submit(Job(f"flood {number}", [1, 2], params, tenant="a", priority=-1))
    core.submit(Job("given up", [1, 2], params, tenant="b"))
    core.submit(Job("one", [1, 2], params, tenant="b", priority=1))
    core.submit(Job("urgent", [1, 2], params, tenant="b"))
    core.abort("given up")
    assert core.load().waiting == 12
    ended: list[str] = []
    while core.has_work:
        ended += [job_id for job_id, one in core.step() if getattr(one, "finish", None)]
    assert ended[:4] == ["flood 0", "urgent", "flood 1", "one"]
    assert len(ended) == 12


def test_each_layer_moves_the_counter_on(checkpoint: Callable[[str], Path]) -> None:
    """Of fused layers, of transformers' own, of encoders, of encoder-decoders."""
    for kind, engine, least in (
        ("llama", "paged", 3),
        ("gpt2", "paged", 3),
        ("mamba", "paged", 2),
        ("t5", "paged", 4),
        ("bert", "paged", 2),
    ):
        count = 0

        def beat() -> None:
            nonlocal count
            count += 1

        config = EngineConfig(model_path=str(checkpoint(kind)), dtype="float32", engine=engine)
        built = build(config, lambda _text: None, num_threads=1, beat=beat)
        before = count
        if built.info.generates:
            built.core.submit(Job("a", [5, 6, 7], SequenceParams(max_tokens=1)))
            built.core.step()
        else:
            built.embed([[5, 6, 7]])
        assert count - before >= least, kind


def test_what_is_no_fault_of_memory_passes_the_border_unchanged() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"), border(CPU):
        raise RuntimeError("size mismatch")
    with pytest.raises(EngineBroken), border(CPU):
        raise EngineBroken("broken")
    with pytest.raises(OutOfMemory), border(CPU):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
