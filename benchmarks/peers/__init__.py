"""Other servers to measure beside ours: how each is started, by name.

An adapter is a context manager: it starts the peer with settings that are good for this machine,
waits until a chat gets through it, gives a `Target`, and ends all that it started.
docs/peers.md says how the peers are installed and why the settings are what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Final

from benchmarks.peers.fastchat_tiers import fastchat, fastchat_gateway
from benchmarks.peers.litellm_proxy import litellm
from benchmarks.peers.llama_server import llamacpp
from benchmarks.peers.process import PeerFailed
from benchmarks.peers.rust_router import sglang_router
from benchmarks.peers.simulated_backend import simulated
from benchmarks.peers.vllm_cpu import vllm
from benchmarks.systems import Target

__all__ = ["ENGINE_PEERS", "GATEWAY_PEERS", "EnginePeer", "GatewayPeer", "PeerFailed", "simulated"]

EnginePeer = Callable[[str, Path, Path], AbstractContextManager[Target]]
"""(interpreter, program or URL; model folder; folder for logs) -> a server of that model."""

GatewayPeer = Callable[[str, Path, str, str], AbstractContextManager[Target]]
"""(interpreter; folder for logs; URL of the backend; its model) -> a gateway in front of it.

The pids are those of the gateway's processes alone. FastChat's backend speaks FastChat's wire (a
worker of ours with the simulated engine), the others' speaks OpenAI's API (`simulated`).
"""

ENGINE_PEERS: Final[Mapping[str, EnginePeer]] = MappingProxyType(
    {"vllm": vllm, "llamacpp": llamacpp, "fastchat": fastchat}
)

GATEWAY_PEERS: Final[Mapping[str, GatewayPeer]] = MappingProxyType(
    {"fastchat": fastchat_gateway, "litellm": litellm, "sglang-router": sglang_router}
)
