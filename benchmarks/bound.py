"""What a model's matrix products alone would allow on this machine, as a bound for an engine.

The products are timed by a program of its own (`bound_products.py`), because this one stays
without torch. What follows from the times is pure.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Bound:
    """Seconds of the products of one forward pass, each the least that was measured.

    Attributes:
        layers_s, head_s: rows of a decode step -> the layers' products, the output layer's.
        chunk_s: rows of a prefill chunk -> the layers' products.
        median_*: the same, medians: how quiet the machine was.
    """

    layers_s: Mapping[int, float]
    head_s: Mapping[int, float]
    chunk_s: Mapping[int, float]
    median_layers_s: Mapping[int, float]
    median_chunk_s: Mapping[int, float]
    dtype: str
    threads: int
    parameters: int
    torch: str

    @classmethod
    def of(cls, *reports: Mapping[str, Any]) -> Bound:
        """From what `bound_products` wrote, once or more often."""
        kinds: dict[str, dict[int, list[float]]] = {"layers": {}, "head": {}, "chunk": {}}
        for name, seconds in ((n, s) for one in reports for n, s in one["seconds"].items()):
            kind, _, rows = name.partition("/")
            kinds[kind].setdefault(int(rows), []).extend(seconds)
        report = reports[0]
        least = {k: {rows: min(s) for rows, s in t.items()} for k, t in kinds.items()}
        median = {
            k: {rows: statistics.median(s) for rows, s in t.items()} for k, t in kinds.items()
        }
        return cls(
            layers_s=least["layers"],
            head_s=least["head"],
            chunk_s=least["chunk"],
            median_layers_s=median["layers"],
            median_chunk_s=median["chunk"],
            dtype=report["dtype"],
            threads=report["threads"],
            parameters=report["parameters"],
            torch=report["torch"],
        )

    def step_s(self, clients: int) -> float:
        """Least time of a decode step of so many sequences."""
        return _between(self.layers_s, clients) + _between(self.head_s, clients)

    def decode_tokens_per_s(self, clients: int) -> float:
        """Most tokens a second of so many sequences that only decode."""
        return clients / self.step_s(clients)

    @property
    def prefill_s_per_token(self) -> float:
        """Least time for a token of a long chunk, without the output layer."""
        return min(seconds / rows for rows, seconds in self.chunk_s.items())

    def batch_s(self, clients: int, prompt_tokens: float, tokens: int) -> float:
        """Least time for one request of each client: the layers over all prompts, the output
        layer over their last rows, which give the first tokens, and a step for each further one.
        """
        prefill = clients * prompt_tokens * self.prefill_s_per_token
        return prefill + _between(self.head_s, clients) + (tokens - 1) * self.step_s(clients)

    def tokens_per_s(self, clients: int, prompt_tokens: float, tokens: int) -> float:
        """Most tokens a second of a closed loop with such requests."""
        return clients * tokens / self.batch_s(clients, prompt_tokens, tokens)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "prefill_tokens_per_s": 1 / self.prefill_s_per_token,
            "decode_tokens_per_s": {n: self.decode_tokens_per_s(n) for n in self.layers_s},
        }


def share(measured: float, bound: float | None) -> float | None:
    """Measured as a part of the bound; None where there is none."""
    return measured / bound if bound else None


def _between(seconds: Mapping[int, float], rows: int) -> float:
    """The time at `rows`: as measured, or on the line between the nearest ones that were."""
    if rows in seconds:
        return seconds[rows]
    known = sorted(seconds)
    if rows < known[0]:
        return seconds[known[0]]
    low = max((n for n in known if n < rows), default=known[0])
    high = min((n for n in known if n > rows), default=None)
    if high is None:  # the products' time grows at most in proportion to the rows
        return seconds[known[-1]] * rows / known[-1]
    part = (rows - low) / (high - low)
    return seconds[low] + part * (seconds[high] - seconds[low])


class BoundFailed(RuntimeError):
    """The products could not be timed; the message says why."""


def time_products(model: Path, clients: Sequence[int], *, seconds: float = 15.0) -> dict[str, Any]:
    """Time the products of `model` at these numbers of clients and of a prefill chunk, for
    `Bound.of`.

    Raises:
        BoundFailed: torch or transformers are missing, or do not know the model.
    """
    rows = ",".join(str(number) for number in sorted({1, *clients}))
    command = [sys.executable, "-m", "benchmarks.bound_products", str(model)]
    done = subprocess.run(
        [*command, "--rows", rows, "--seconds", str(seconds)],
        # threads wait for each other as the engine's do: they spin briefly
        env={"GOMP_SPINCOUNT": "2000", **os.environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BoundFailed(f"the products of {model} cannot be timed: {last}")
    report: dict[str, Any] = orjson.loads(done.stdout.splitlines()[-1])
    return report
