"""Trains the demo model from nothing: `python -m worker.demo.train --out DIR`.

The same seed and thread count give the same weights, bit by bit, on the same kind of machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as EtaColumn
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from worker.demo.corpus import conversations
from worker.demo.tokenizer import (
    BOS,
    END,
    PAD,
    SPECIAL_TOKENS,
    START,
    as_pretrained,
    render,
    train_tokenizer,
)

CONTEXT_LENGTH = 2048
LONGEST_SAMPLE = 1024
_BATCHES_PER_POOL = 48


@dataclass(frozen=True)
class Settings:
    """Everything the weights depend on, apart from the corpus."""

    steps: int = 3200
    tokens_per_step: int = 1024
    learning_rate: float = 2.5e-3
    warmup_steps: int = 150
    weight_decay: float = 0.1
    prompt_weight: float = 0.05  # what a token of the user counts in the loss
    even_length: int = 12  # a token counts 1 in an answer of this length, less in a longer one
    seed: int = 7
    threads: int = 1
    vocab_size: int = 1536
    tokenizer_samples: int = 8000
    hidden_size: int = 256
    intermediate_size: int = 512
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2

    def model_config(self) -> LlamaConfig:
        """The architecture, with the ids of the special tokens."""
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=CONTEXT_LENGTH,
            tie_word_embeddings=True,
            pad_token_id=SPECIAL_TOKENS.index(PAD),
            bos_token_id=SPECIAL_TOKENS.index(BOS),
            eos_token_id=SPECIAL_TOKENS.index(END),
        )


@dataclass(frozen=True)
class Batch:
    """Token ids and the weight of each as a target, both of shape (sequences, length)."""

    ids: torch.Tensor
    weights: torch.Tensor


def make_deterministic(settings: Settings) -> None:
    """Fix seed, thread count and algorithms of this process."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def build_tokenizer(settings: Settings) -> Tokenizer:
    """Train the tokenizer on a sample of the corpus that has a seed of its own."""
    sample = conversations(random.Random(settings.seed + 1))
    texts = (
        message["content"]
        for messages in islice(sample, settings.tokenizer_samples)
        for message in [*messages, {"content": "\n"}, {"content": "system user assistant"}]
    )
    return train_tokenizer(texts, settings.vocab_size)


def batches(settings: Settings, tokenizer: Tokenizer) -> Iterator[Batch]:
    """Endless batches of about `tokens_per_step` tokens, sequences of like length together."""
    rng = random.Random(settings.seed)
    stream = conversations(rng)
    while True:
        samples: list[list[int]] = []
        count = 0
        while count < _BATCHES_PER_POOL * settings.tokens_per_step:
            texts = [render(messages) for messages in islice(stream, 256)]
            for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
                samples.append(encoding.ids[:LONGEST_SAMPLE])
                count += len(samples[-1])
        samples.sort(key=len)
        pool: list[list[list[int]]] = [[]]
        for ids in samples:
            if pool[-1] and (len(pool[-1]) + 1) * len(ids) > settings.tokens_per_step:
                pool.append([])
            pool[-1].append(ids)
        rng.shuffle(pool)
        for group in pool:
            yield _pad(settings, tokenizer, group)


def train(settings: Settings, tokenizer: Tokenizer, *, quiet: bool = False) -> LlamaForCausalLM:
    """Train a fresh model; returns it in float32."""
    make_deterministic(settings)
    model = LlamaForCausalLM(settings.model_config())
    model.train()
    optimizer = _optimizer(settings, model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(settings, step))
    progress = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        EtaColumn(),
        disable=quiet,
    )
    smooth = math.log(settings.vocab_size)
    with progress:
        task = progress.add_task("train", total=settings.steps, loss=smooth)
        for step, batch in enumerate(islice(batches(settings, tokenizer), settings.steps), 1):
            loss = _loss(model, batch)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            smooth += (loss.item() - smooth) * max(0.02, 1 / step)
            progress.update(task, advance=1, loss=smooth)
            if step % 200 == 0 and not progress.console.is_terminal:
                progress.console.print(f"step {step} of {settings.steps}, loss {smooth:.4f}")
    return model.eval()


def save(settings: Settings, model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the checkpoint in the Hugging Face layout, weights in bfloat16."""
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
        max_new_tokens=200,
    )
    model.save_pretrained(out)
    as_pretrained(tokenizer, CONTEXT_LENGTH).save_pretrained(out)
    # transformers 4 reads these names, transformers 5 reads and ignores them.
    _amend(out / "config.json", {"rope_theta": 10000.0, "torch_dtype": "bfloat16"})
    _amend(out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _pad(settings: Settings, tokenizer: Tokenizer, group: list[list[int]]) -> Batch:
    length = max(len(ids) for ids in group)
    pad = tokenizer.token_to_id(PAD)
    padded = torch.tensor([ids + [pad] * (length - len(ids)) for ids in group])
    weights = [_weights(settings, tokenizer, ids) + [0.0] * (length - len(ids)) for ids in group]
    return Batch(ids=padded, weights=torch.tensor(weights))


def _weights(settings: Settings, tokenizer: Tokenizer, ids: list[int]) -> list[float]:
    """What each token counts: the shorter an answer, the more, so that sums are not drowned."""
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    if ids[0] != start:
        return [0.5] * len(ids)
    opening = [start, *tokenizer.encode("assistant\n", add_special_tokens=False).ids]
    weights = [settings.prompt_weight] * len(ids)
    for at, token in enumerate(ids):
        if token == start and ids[at : at + len(opening)] == opening:
            first = at + len(opening)
            last = ids.index(end, first) if end in ids[first:] else len(ids) - 1
            count = last + 1 - first
            weights[first : last + 1] = [math.sqrt(settings.even_length / max(1, count))] * count
    return weights


def _loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def _optimizer(settings: Settings, model: LlamaForCausalLM) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    scales = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)


def _rate(settings: Settings, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _amend(path: Path, values: dict[str, object]) -> None:
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Parse the command line, train, save, and print the digest of the weights."""
    parser = argparse.ArgumentParser(prog="python -m worker.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=Settings.seed, help="default: %(default)s")
    arguments = parser.parse_args()
    settings = Settings(steps=arguments.steps, seed=arguments.seed)
    tokenizer = build_tokenizer(settings)
    model = train(settings, tokenizer)
    save(settings, model, tokenizer, arguments.out)
    weights = arguments.out / "model.safetensors"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters, {weights.stat().st_size:,} bytes, sha256 {digest(weights)}")


if __name__ == "__main__":
    main()
