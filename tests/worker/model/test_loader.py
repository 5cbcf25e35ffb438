"""Loading: what is refused, with which reason; context lengths; the engine process."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from protocol.errors import TriremeError
from worker.engine.config import EngineConfig
from worker.engine.process import EngineProcess
from worker.engine.protocol import Job, ModelLoadError, SequenceParams, StepOutput
from worker.model.loader import context_length_of, load_model


def load(path: Path | str, **rest: Any) -> Any:
    return load_model(EngineConfig(model_path=str(path), **rest), lambda _text: None)


@pytest.fixture
def copied(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A llama folder that a test may damage."""
    return Path(shutil.copytree(checkpoint("llama"), tmp_path / "llama"))


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(ModelLoadError, match="no model folder at /nowhere/at/all"):
        load("/nowhere/at/all")


def test_truncated_weights_are_named(copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="broken safetensors file"):
        load(copied)


def test_pickled_weights_are_refused(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="pickled weights only"):
        load(copied)


def test_an_unknown_architecture_is_named_in_one_short_line(copied: Path) -> None:
    (copied / "config.json").write_text('{"model_type": "zzz"}')
    with pytest.raises(ModelLoadError, match="zzz") as caught:
        load(copied)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(copied))


def test_a_folder_without_weights_or_configuration_is_refused(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"no \*.safetensors weights"):
        load(copied)
    (copied / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        load(copied)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"device": "nonsense"}, "unknown device"),
        ({"device": "cpu", "num_gpus": 2}, "--num-gpus above 1 needs CUDA"),
        ({"device": "cpu", "max_gpu_memory": "3GiB"}, "--max-gpu-memory needs CUDA"),
        ({"device": "cpu", "cpu_offloading": True}, "--cpu-offloading needs CUDA"),
        ({"max_model_len": 513}, "--max-model-len 513 is above the model's own"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(
    checkpoint: Callable[[str], Path], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        load(checkpoint("llama"), **options)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (hf.LlamaConfig(max_position_embeddings=2048), 2048),
        (hf.GPT2Config(n_positions=1024), 1024),
        (
            hf.LlamaConfig(
                max_position_embeddings=131072,
                rope_parameters={
                    "rope_type": "llama3",
                    "rope_theta": 1e6,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            ),
            131072,
        ),
        (
            hf.Qwen2Config(
                max_position_embeddings=32768,
                rope_parameters={
                    "rope_type": "yarn",
                    "rope_theta": 1e6,
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            ),
            131072,
        ),
        (
            hf.LlamaConfig(
                max_position_embeddings=2048,
                rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
            ),
            4096,
        ),
    ],
    ids=["plain", "gpt2", "llama3", "yarn", "linear"],
)
def test_rope_scaling_is_counted_once(config: Any, expected: int) -> None:
    assert context_length_of(config) == expected


def test_the_progress_is_reported(checkpoint: Callable[[str], Path]) -> None:
    seen: list[str] = []
    load_model(EngineConfig(model_path=str(checkpoint("llama"))), seen.append)
    assert seen[0] == "reading the configuration"
    assert seen[-1] == "loading weights 100%"


async def test_the_engine_process_serves_aborts_and_dies_loudly(
    checkpoint: Callable[[str], Path],
) -> None:
    """One process for the whole life, since each start imports torch."""
    engine = EngineProcess(EngineConfig(model_path=str(checkpoint("llama")), dtype="float32"))
    await engine.start()
    try:
        assert engine.info.engine == "paged"
        assert engine.progress == ""

        async def run(job_id: str) -> list[int]:
            params = SequenceParams(max_tokens=12, temperature=1.0, seed=3)
            taken = engine.submit(Job(job_id, [5, 6, 7], params))
            return [
                token
                async for outputs in taken
                for output in outputs
                for token in getattr(output, "ids", [])
            ]

        together = await asyncio.gather(*(run(f"same-{number}") for number in range(4)))
        assert len(together[0]) == 12
        assert all(tokens == together[0] for tokens in together)
        assert len((await engine.embed([[5, 6, 7]]))[0]) == 64

        endless = engine.submit(Job("endless", [5, 6, 7], SequenceParams(max_tokens=400)))
        assert isinstance((await anext(endless))[0], StepOutput)
        await endless.aclose()
        async with asyncio.timeout(5):
            while engine.load().busy:  # noqa: ASYNC110  # the load has no event
                await asyncio.sleep(0.01)
        assert engine.load().kv_free == 1.0

        dying = engine.submit(Job("dying", [5, 6, 7], SequenceParams(max_tokens=500)))
        await anext(dying)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(TriremeError, match="signal 9"):
            [output async for output in dying]
        assert "signal 9" in await engine.wait_dead()
        with pytest.raises(TriremeError, match="not running"):
            await anext(engine.submit(Job("after", [5], SequenceParams(max_tokens=1))))
    finally:
        await engine.close()
