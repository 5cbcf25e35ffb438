"""What is measured: a running server, by whatever name, and the processes that it consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Wire = Literal["openai", "native"]


@dataclass(frozen=True, slots=True)
class Target:
    """A running server that a load can be sent to.

    Attributes:
        system: its name in the tables: "trireme", "trireme direct", "vllm", "llama.cpp", …
        base_url: where it listens, without /v1.
        model: the name under which to ask for the model.
        pids: root pids of its processes: for their CPU time (with children), and to pause the
            whole trees while another system is measured. Empty when they are not known.
        extra_body: fields that this server needs in each request.
        wire: what it speaks: OpenAI's API, or the native wire of our workers.
    """

    system: str
    base_url: str
    model: str
    pids: tuple[int, ...] = ()
    extra_body: Mapping[str, object] = field(default_factory=dict)
    wire: Wire = "openai"
