"""Tensor parallelism: each rank holds a part of every layer, cut by transformers' own plan.

All ranks run the same forwards. Rank 0 is the engine: it alone schedules and samples, and tells
the others what to compute (`worker/engine/ranks.py`). A rank's KV pool holds the heads that its
part of the layers computes.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn

from worker.engine.faults import EngineBroken
from worker.engine.protocol import ModelLoadError
from worker.engine.ranks import Kind, Order, Ranks
from worker.model.attention import PagedAttention, Span
from worker.model.runner import ModelRunner
from worker.sentence_files import Pooling

_TIMEOUT: Final = timedelta(hours=2)
"""Ranks wait for each other while they read large weights; a dead one is noticed otherwise."""


def join(device: torch.device, rank: int, size: int, meeting: socket.socket | int) -> None:
    """Make this process rank `rank` of `size` ranks on this machine.

    Args:
        device: `cpu`, or `cuda`, where the rank takes the device of its number.
        meeting: where ranks meet: a port on loopback, for rank 0 the socket that listens there.
    """
    if isinstance(meeting, socket.socket):
        port, listening = int(meeting.getsockname()[1]), meeting.detach()
    else:
        port, listening = meeting, None
    os.environ["LOCAL_RANK"] = str(rank)  # transformers takes the device of this number
    if device.type == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # transformers takes a GPU wherever it sees one
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]  # not in its __all__
        "127.0.0.1",
        port,
        size,
        is_master=listening is not None,
        timeout=_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listening,
    )
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=_TIMEOUT,
        device_id=torch.device("cuda", rank) if on_gpu else None,
    )


def check_model(hf_config: Any, size: int) -> None:
    """Whether a model can be cut into `size` parts.

    Raises:
        ModelLoadError: when transformers has no plan for it, or its heads cannot be shared out
            evenly.
    """
    text = hf_config.get_text_config()
    if not getattr(text, "base_model_tp_plan", None):
        raise ModelLoadError(
            f"--tensor-parallel-size {size}: transformers has no plan to cut a model of type "
            f"{text.model_type!r} into parts"
        )
    heads = int(getattr(text, "num_attention_heads", 0) or 0)
    for name, count in (
        ("attention heads", heads),
        ("key-value heads", int(getattr(text, "num_key_value_heads", None) or heads)),
    ):
        if not count or count % size:
            raise ModelLoadError(
                f"--tensor-parallel-size {size} does not divide the model's {count} {name}"
            )


def keep_local(model: nn.Module) -> None:
    """Leave linear layers with their own rank's part of the weights as plain tensors.

    transformers' forwards of linear layers compute with those anyway, and unwrap them at each call.
    """
    from torch.distributed.tensor import DTensor

    for module in model.modules():
        if isinstance(module, nn.Linear):
            for name, weight in list(module.named_parameters(recurse=False)):
                if isinstance(weight, DTensor):
                    setattr(module, name, nn.Parameter(weight.to_local(), requires_grad=False))


class LeadRunner(ModelRunner):
    """Rank 0's runner: has the other ranks do what it does.

    Once a forward has failed here the ranks are out of step: that ends the process.
    """

    def __init__(
        self, model: Any, attention: PagedAttention, device: torch.device, ranks: Ranks
    ) -> None:
        super().__init__(model, attention, device)
        self._ranks = ranks

    def plain(self, token_ids: Sequence[int]) -> torch.Tensor:
        """As `ModelRunner.plain`."""
        self._ranks.send(Order(Kind.PLAIN, token_ids))
        return super().plain(token_ids)

    def least(self, num_blocks: int, max_running: int) -> int:
        """The least number of KV blocks that a rank has memory for; `num_blocks` is the own."""
        self._ranks.send(Order(Kind.LEAST, [max_running]))
        return least(num_blocks, self._device)

    def allocate(self, num_blocks: int) -> None:
        """As `ModelRunner.allocate`."""
        self._ranks.send(Order(Kind.ALLOCATE, [num_blocks]))
        super().allocate(num_blocks)

    def clear(self, blocks: list[int]) -> None:
        """As `ModelRunner.clear`."""
        self._ranks.send(Order(Kind.CLEAR, blocks))
        super().clear(blocks)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """As `ModelRunner.copy`."""
        self._ranks.send(Order(Kind.COPY, [block for pair in pairs for block in pair]))
        super().copy(pairs)

    def logits(
        self, token_ids: Sequence[int], spans: Sequence[Span], kept: Sequence[int]
    ) -> torch.Tensor:
        """As `ModelRunner.logits`."""
        plan = [(span.start, span.length, span.blocks) for span in spans]
        with _in_step():
            self._ranks.send(Order(Kind.LOGITS, token_ids, plan, kept))
            return super().logits(token_ids, spans, kept)

    def embed(
        self, inputs: Sequence[Sequence[int]], pooling: Pooling = "mean"
    ) -> list[list[float]]:
        """As `ModelRunner.embed`."""
        token_ids = [token for tokens in inputs for token in tokens]
        spans = [(0, len(tokens), ()) for tokens in inputs]
        with _in_step():
            self._ranks.send(Order(Kind.EMBED, token_ids, spans))
            return super().embed(inputs, pooling)


@contextmanager
def _in_step() -> Iterator[None]:
    """Around what all ranks do: whatever is raised in one, the others cannot go on."""
    try:
        yield
    except Exception as error:
        raise EngineBroken(f"{type(error).__name__}: {error}") from error


def least(number: int, device: torch.device) -> int:
    """The least of all ranks' numbers; each rank calls this."""
    found = torch.tensor([number], device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return int(found.item())
