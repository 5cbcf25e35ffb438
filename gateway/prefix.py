"""Remembers which worker was sent which prompt prefix, in bounded memory. Pure.

A prompt is cut in chunks of equal size; each chunk's hash covers all before it, so equal hashes
mean equal prefixes. Prompts are not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container
from functools import lru_cache
from hashlib import blake2b
from typing import Final, TypeAlias

from protocol.generation import GenerateRequest

CHUNK_BYTES: Final = 256
CHUNK_TOKENS: Final = 64
"""Tokens that a chunk is worth: about four bytes a token of text, four bytes a token id."""
MAX_CHUNKS: Final = 512
MAX_WORKERS_A_CHUNK: Final = 8

Fingerprint: TypeAlias = tuple[bytes, ...]


def fingerprint(request: GenerateRequest) -> Fingerprint:
    """The chained hashes of a request's prompt, of whole chunks only."""
    if request.messages is not None:
        turns = (f"{m.get('role')}\x1f{m.get('content')}\x1e" for m in request.messages)
        data = "".join(turns).encode("utf-8", "surrogatepass")
    elif request.prompt is not None:
        data = request.prompt.encode("utf-8", "surrogatepass")
    else:
        data = b"".join(token.to_bytes(4, "little") for token in request.prompt_ids or ())
    seed = _seed(request.model, request.cache_salt)
    chain: list[bytes] = []
    for start in range(0, min(len(data), MAX_CHUNKS * CHUNK_BYTES) - CHUNK_BYTES + 1, CHUNK_BYTES):
        seed = blake2b(data[start : start + CHUNK_BYTES], digest_size=8, key=seed).digest()
        chain.append(seed)
    return tuple(chain)


@lru_cache(maxsize=4096)
def _seed(model: str, cache_salt: str) -> bytes:
    """What the chains of a model and a caller begin with."""
    return blake2b(f"{model}\0{cache_salt}".encode(), digest_size=8).digest()


def prompt_tokens(request: GenerateRequest) -> int:
    """A rough count of a request's prompt tokens, at least 1."""
    if request.prompt_ids is not None:
        return max(1, len(request.prompt_ids))
    if request.prompt is not None:
        return 1 + len(request.prompt) // 4
    return 1 + sum(4 + len(str(m.get("content"))) // 4 for m in request.messages or ())


class PrefixIndex:
    """Least recently used chunks are forgotten beyond `capacity`."""

    def __init__(self, capacity: int = 65_536) -> None:
        self._capacity = capacity
        self._sent: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sent)

    def record(self, prefix: Fingerprint, instance_id: str) -> None:
        """The worker was sent a prompt with this prefix."""
        for chunk in prefix:
            others = [id_ for id_ in self._sent.get(chunk, ()) if id_ != instance_id]
            self._sent[chunk] = (instance_id, *others[: MAX_WORKERS_A_CHUNK - 1])
            self._sent.move_to_end(chunk)
        while len(self._sent) > self._capacity:
            self._sent.popitem(last=False)

    def matched_tokens(self, prefix: Fingerprint, among: Container[str]) -> dict[str, int]:
        """For each of these workers that saw a prefix of it: how many tokens of it, about."""
        matched: dict[str, int] = {}
        for depth, chunk in enumerate(prefix):
            saw = [
                id_
                for id_ in self._sent.get(chunk, ())
                if id_ in among and matched.get(id_, 0) == depth * CHUNK_TOKENS
            ]
            if not saw:
                break
            matched.update(dict.fromkeys(saw, (depth + 1) * CHUNK_TOKENS))
        return matched
