"""What can be asked of a server, and the cells (workload x level) of a measurement. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["load", "prefix", "long"]
Loop = Literal["closed", "open", "long"]


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of request, and how many of them.

    Attributes:
        prompt_words, tokens: words in and tokens out of each request.
        kind: `load` runs at any number of clients or rate; the others have their own numbers.
        clients: of the kinds that have their own.
        prefix_words: beginning that requests share (`prefix`).
        long_requests, long_words: the prompts that come in between (`long`).
    """

    name: str
    title: str
    prompt_words: int
    tokens: int
    kind: Kind = "load"
    clients: int = 0
    prefix_words: int = 0
    long_requests: int = 0
    long_words: int = 0


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("decode", "mostly decoding", 48, 128),
        Workload("short", "prefill and decoding", 48, 32),
        Workload("prefix", "a shared prefix", 16, 8, "prefix", clients=16, prefix_words=1000),
        Workload(
            "long",
            "long prompts among short streams",
            48,
            256,
            "long",
            clients=8,
            long_requests=4,
            long_words=3000,
        ),
    )
}


def describe(workload: Workload) -> str:
    """What one of its requests is, in words."""
    text = f"{workload.prompt_words} words in, {workload.tokens} tokens out"
    if workload.kind == "prefix":
        text = f"{workload.prefix_words} words of prefix and {text}"
    if workload.kind == "long":
        text += f"; then {workload.long_requests} prompts of {workload.long_words} words"
    return f"{workload.name}: {workload.title}; {text}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the results, measured once in every repeat for every system.

    Attributes:
        label: its name in the table's first column.
        loop: how it is sent. `closed` with `clients`, `open` with `rate_per_s`.
        same_prefix: all requests begin with the same `prefix_words` words, which the server has
            seen once before; otherwise each has its own.
    """

    workload: Workload
    label: str
    loop: Loop
    clients: int = 0
    rate_per_s: float = 0.0
    same_prefix: bool = False

    @property
    def level(self) -> float:
        """Clients, or requests a second in an open loop."""
        return self.rate_per_s if self.loop == "open" else self.clients

    @property
    def key(self) -> str:
        """Names it among the cells of a measurement."""
        return f"{self.workload.name}/{self.label}"


def cells_of(
    workload: Workload, clients: Sequence[int], rates_per_s: Sequence[float] = ()
) -> list[Cell]:
    """The cells of a workload: a closed loop for each of `clients`, or an open loop for each of
    `rates_per_s` where there are some. Workloads with numbers of their own take no others."""
    if workload.kind == "prefix":
        cell = Cell(workload, "different", "closed", clients=workload.clients)
        return [cell, replace(cell, label="same", same_prefix=True)]
    if workload.kind == "long":
        label = f"{workload.clients} + {workload.long_requests}"
        return [Cell(workload, label, "long", clients=workload.clients)]
    if rates_per_s:
        return [Cell(workload, f"{rate:g}/s", "open", rate_per_s=rate) for rate in rates_per_s]
    return [Cell(workload, str(number), "closed", clients=number) for number in clients]


def chosen(names: str, *, prompt_words: int = 0, tokens: int = 0) -> list[Workload]:
    """The workloads in a list `a,b` (or `all`), with other lengths where they are given.

    Raises:
        ValueError: when there is no such workload.
    """
    wanted = list(WORKLOADS) if names == "all" else names.split(",")
    if unknown := [name for name in wanted if name not in WORKLOADS]:
        raise ValueError(f"no workload {unknown[0]!r}; there are {', '.join(WORKLOADS)} and all")
    return [
        replace(
            WORKLOADS[name],
            prompt_words=prompt_words or WORKLOADS[name].prompt_words,
            tokens=tokens or WORKLOADS[name].tokens,
        )
        for name in wanted
    ]
