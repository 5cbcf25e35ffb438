"""An engine process whose memory is bounded by the system: it does with less, and lives."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers as hf

from worker.engine.config import EngineConfig
from worker.engine.process import EngineProcess
from worker.engine.protocol import Job, SequenceParams

WIDE, PROMPT = 32_768, 500
"""Tokens of the prompt, and how wide a layer is inside: together 65 MB a tensor in float32."""


async def tokens(engine: EngineProcess, job_id: str) -> list[int]:
    params = SequenceParams(max_tokens=12, temperature=1.0, seed=4)
    prompt = [3 + 7 * at % 380 for at in range(PROMPT)]
    taken = engine.submit(Job(job_id, prompt, params, cache_salt=job_id))
    return [one async for outputs in taken for output in outputs for one in output.ids]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bound no other process")
async def test_a_long_prompt_is_computed_in_what_memory_there_is(tmp_path: Path) -> None:
    config = hf.LlamaConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=WIDE,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path)
    engine = EngineProcess(
        EngineConfig(model_path=str(tmp_path), dtype="float32", kv_cache_gb=0.01)
    )
    await engine.start()
    try:
        expected = await tokens(engine, "free")
        assert engine.load().out_of_memory == 0
        assert engine.pid is not None
        process: Any = psutil.Process(engine.pid)
        in_use = process.memory_info().vms
        process.rlimit(resource.RLIMIT_AS, (in_use + 20_000_000, resource.RLIM_INFINITY))
        pid = engine.pid
        assert await tokens(engine, "bounded") == expected
        assert engine.load().out_of_memory > 0
        assert engine.pid == pid
        assert process.is_running()
    finally:
        await engine.close()
