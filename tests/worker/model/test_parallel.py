"""Two ranks on the CPU compute what one process and transformers compute; none outlives another."""

from __future__ import annotations

import os
import random
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pydantic_core import to_json
from transformers import AutoModelForCausalLM, GenerationConfig

from protocol.errors import TriremeError
from worker.engine import pipe
from worker.engine.config import EngineConfig
from worker.engine.process import EngineProcess
from worker.engine.protocol import EngineInfo, Job, ModelLoadError, PromptOutput, SequenceParams
from worker.engine.watchdog import Pulse
from worker.model.build import build
from worker.model.loader import load_model

ROOT = Path(__file__).parents[3]


def prompts() -> list[list[int]]:
    rng = random.Random(2)
    lengths = [1, 17, 60, 16, 5, 33, 2, 40]
    return [[rng.randrange(3, 384) for _ in range(length)] for length in lengths]


def number_of_tokens(number: int) -> int:
    return 6 + 3 * number


def greedy(number: int) -> SequenceParams:
    return SequenceParams(max_tokens=number_of_tokens(number), temperature=0.0, stop_token_ids=(2,))


class TwoRanks:
    """An engine process with two ranks, on a few blocks and a small budget: all must share."""

    def __init__(self, folder: Path) -> None:
        config = EngineConfig(
            model_path=str(folder),
            dtype="float32",
            device="cpu",
            tensor_parallel_size=2,
            max_batch_tokens=47,
            kv_cache_gb=20 * 16 * 3 * 2 * 2 * 16 * 4 / 1024**3,  # 20 blocks of three layers
        )
        ours, theirs = socket.socketpair()
        self.pulse = Pulse.create()
        with theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "worker.engine.child",
                    str(os.getpid()),
                    str(theirs.fileno()),
                    str(self.pulse.descriptor),
                    to_json(config).decode(),
                ],
                cwd=ROOT,
                pass_fds=[theirs.fileno(), self.pulse.descriptor],
            )
        self._channel = ours
        self._file = ours.makefile("rwb")

    def wait_ready(self) -> EngineInfo:
        while isinstance(message := self.receive(), pipe.Progress):
            pass
        assert isinstance(message, pipe.Ready), message
        return message.info

    def send(self, message: Any) -> None:
        self._file.write(pipe.encode(message))
        self._file.flush()

    def receive(self) -> Any:
        line = self._file.readline()
        assert line, "the engine process has ended"
        return pipe.decode_from_engine(line)

    def ranks(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def run(self, jobs: list[Job]) -> tuple[dict[str, list[int]], list[PromptOutput]]:
        """All jobs at once: their tokens, and scores of prompts."""
        for job in jobs:
            self.send(pipe.Submit(job))
        tokens: dict[str, list[int]] = {job.job_id: [] for job in jobs}
        scores: list[PromptOutput] = []
        left = set(tokens)
        while left:
            step = self.receive()
            assert step.failures == []
            scores += [output for _job_id, output in step.prompts]
            for job_id, output in step.tokens:
                tokens[job_id] += output.ids
                if output.finish:
                    left.discard(job_id)
        return tokens, scores

    def embed(self, inputs: list[list[int]]) -> list[list[float]]:
        self.send(pipe.Embed(1, inputs))
        while not isinstance(message := self.receive(), pipe.Embedded):
            pass
        assert message.error == ""
        return message.vectors

    def wait_unread(self) -> None:
        """Until there is a message that was not read."""
        select.select([self._channel], [], [], 10)

    def close_channel(self) -> None:
        self._file.close()
        self._channel.close()

    def close(self) -> None:
        self.close_channel()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_two_ranks_give_the_tokens_of_one_process_and_of_generate(
    name: str, checkpoint: Callable[[str], Path]
) -> None:
    """Also of a beam search, scores of a prompt and embeddings. Then one process goes: all do."""
    folder = checkpoint(name)
    texts = prompts()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = []
    for number, prompt in enumerate(texts):
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=number_of_tokens(number),
            eos_token_id=2,
            pad_token_id=0,
        )
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        expected.append(out[0].tolist()[len(prompt) :])
    one = build(
        EngineConfig(model_path=str(folder), dtype="float32"), lambda _text: None, num_threads=1
    )

    engine = TwoRanks(folder)
    try:
        info = engine.wait_ready()
        [rank] = engine.ranks()
        assert info.engine == "paged"
        assert info.kv_blocks == 20
        assert info.weights_digest != one.info.weights_digest

        jobs = [Job(str(number), text, greedy(number)) for number, text in enumerate(texts)]
        tokens, _scores = engine.run(jobs)
        assert list(tokens.values()) == expected
        for job in jobs:
            one.core.submit(job)
        alone: dict[str, list[int]] = {job.job_id: [] for job in jobs}
        while one.core.has_work:
            for job_id, output in one.core.step():
                alone[job_id] += output.ids  # type: ignore[union-attr]
        assert tokens == alone

        searched = SequenceParams(max_tokens=10, temperature=0.0, beam_width=4)
        tokens, _scores = engine.run([Job("beams", texts[2], searched)])
        config = GenerationConfig(num_beams=4, max_new_tokens=10, eos_token_id=None, pad_token_id=0)
        ids = torch.tensor([texts[2]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert tokens["beams"] == out[0].tolist()[len(texts[2]) :]

        scored = SequenceParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
        _tokens, [score] = engine.run([Job("scored", texts[2], scored)])
        with torch.inference_mode():
            logprobs = model(torch.tensor([texts[2]])).logits[0].log_softmax(-1)
        for at, found in enumerate(score.logprobs[1:]):
            assert found.logprob == pytest.approx(logprobs[at, texts[2][at + 1]].item(), abs=1e-4)

        for found, own in zip(engine.embed(texts), one.embed(texts), strict=True):
            assert found == pytest.approx(own, abs=1e-4)

        if name == "llama":
            rank.kill()
            assert engine.process.wait(10) == 1
        else:  # whoever asked is gone, with answers that it has not read
            endless = SequenceParams(max_tokens=400, temperature=0.0)
            engine.send(pipe.Submit(Job("endless", texts[0], endless)))
            engine.wait_unread()
            engine.close_channel()
            engine.process.wait(10)
        rank.wait(10)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("llama", 3, "--tensor-parallel-size 3 does not divide the model's 4 attention heads"),
        ("llama", 4, "--tensor-parallel-size 4 does not divide the model's 2 key-value heads"),
        ("opt", 2, "no plan to cut a model of type 'opt' into parts"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused(
    name: str, size: int, reason: str, checkpoint: Callable[[str], Path]
) -> None:
    config = EngineConfig(model_path=str(checkpoint(name)), device="cpu", tensor_parallel_size=size)
    with pytest.raises(ModelLoadError, match=reason):
        load_model(config, lambda _text: None)


async def test_a_rank_that_is_stopped_ends_the_engine_and_is_gone_itself(
    checkpoint: Callable[[str], Path],
) -> None:
    """Rank 0 waits for it in a step that never ends."""
    config = EngineConfig(
        model_path=str(checkpoint("llama")),
        dtype="float32",
        device="cpu",
        tensor_parallel_size=2,
        stall_s=3.0,
    )
    engine = EngineProcess(config)
    await engine.start()
    try:
        [rank] = psutil.Process(engine.pid).children()
        rank.suspend()
        with pytest.raises(TriremeError, match=r"no progress for 3\.\d s") as caught:
            async for _outputs in engine.submit(Job("a", [5, 6, 7], greedy(1))):
                pass
        assert caught.value.code == "engine_dead"
        assert "no progress" in await engine.wait_dead()
        assert not psutil.wait_procs([rank], timeout=10)[1]
    finally:
        await engine.close()
