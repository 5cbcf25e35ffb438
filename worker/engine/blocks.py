"""The block pool: which KV block belongs to whom. Bookkeeping only; the tensors are elsewhere.

Blocks hold `block_size` tokens each and are counted by reference, so sequences with the same
prefix share them. A full block is known by a hash chained over all tokens before it; a block
that nobody holds keeps its content and its hash until it is taken again, least recently freed
first (the scheme of vLLM's automatic prefix caching).
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict

from worker.engine.sequence import Sequence


class BlockPool:
    """Blocks 0..num_blocks-1.

    Args:
        num_blocks: size of the pool.
        block_size: tokens a block.
        prefix_cache: whether full blocks are shared by content.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._prefix_cache = prefix_cache
        self._refs = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, those with cached content included."""
        return len(self._free)

    def is_free(self, block: int) -> bool:
        """Whether nobody holds `block`."""
        return self._refs[block] == 0

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks needed to hold `num_tokens`."""
        return -(-num_tokens // self.block_size)

    def missing(self, seq: Sequence, num_tokens: int) -> int:
        """Blocks that `seq` still lacks to hold its first `num_tokens` tokens."""
        return max(0, self.blocks_for(num_tokens) - len(seq.block_table))

    def can_grow(self, seq: Sequence, num_tokens: int) -> bool:
        """Whether enough blocks are free for `seq` to hold `num_tokens` tokens."""
        return self.missing(seq, num_tokens) <= len(self._free)

    def grow(self, seq: Sequence, num_tokens: int) -> None:
        """Give `seq` blocks for its first `num_tokens` tokens; `can_grow` must hold."""
        for _ in range(self.missing(seq, num_tokens)):
            block, _none = self._free.popitem(last=False)
            self._forget(block)
            self._refs[block] = 1
            seq.block_table.append(block)

    def match_prefix(self, seq: Sequence) -> int:
        """Let an empty `seq` hold the cached blocks of its prefix; returns the tokens found.

        At least the last token is left to compute, since its logits are needed.
        """
        if not self._prefix_cache or seq.wants_prompt_logprobs:
            return 0
        for number in range((seq.num_tokens - 1) // self.block_size):
            block = self._block_of.get(self._hash(seq, number))
            if block is None:
                break
            self._free.pop(block, None)
            self._refs[block] += 1
            seq.block_table.append(block)
        seq.num_hashed = len(seq.block_table)
        return seq.num_hashed * self.block_size

    def fork(self, seq: Sequence, branch: Sequence) -> tuple[int, int] | None:
        """Let an empty `branch` hold what is computed of `seq`, whose tokens it begins with.

        Full blocks are shared. Of the last, partly filled one the branch gets a block of its own,
        and the two are returned: the content of the first is to be copied to the second. When no
        block is free for it those tokens stay to be computed.
        """
        full, rest = divmod(seq.num_computed, self.block_size)
        branch.block_table = seq.block_table[:full]
        for block in branch.block_table:
            self._refs[block] += 1
        branch.block_hashes = seq.block_hashes[:full]
        branch.num_hashed = min(seq.num_hashed, full)
        branch.num_computed = full * self.block_size
        if not rest or not self._free:
            return None
        self.grow(branch, seq.num_computed)
        branch.num_computed = seq.num_computed
        return seq.block_table[full], branch.block_table[full]

    def publish(self, seq: Sequence) -> None:
        """Make the full, computed blocks of `seq` findable by content."""
        if not self._prefix_cache:
            return
        for number in range(seq.num_hashed, seq.num_computed // self.block_size):
            block, digest = seq.block_table[number], self._hash(seq, number)
            if digest not in self._block_of:
                self._block_of[digest] = block
                self._hash_of[block] = digest
            seq.num_hashed = number + 1

    def release(self, seq: Sequence) -> None:
        """Take all blocks from `seq`; its tail is reused before its head."""
        for block in reversed(seq.block_table):
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self._free[block] = None
        seq.block_table.clear()
        seq.num_hashed = 0
        seq.num_computed = 0

    def discard(self, seq: Sequence) -> None:
        """Release the blocks of `seq` whose content is bad: nobody shall find them by content."""
        for block in seq.block_table:
            self._forget(block)
        self.release(seq)

    def _forget(self, block: int) -> None:
        digest = self._hash_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]

    def _hash(self, seq: Sequence, number: int) -> bytes:
        while len(seq.block_hashes) <= number:
            at = len(seq.block_hashes)
            before = seq.block_hashes[-1] if at else seq.cache_salt.encode()
            tokens = seq.token_ids[at * self.block_size : (at + 1) * self.block_size]
            digest = hashlib.sha256(b"%d:" % len(before) + before + array("q", tokens).tobytes())
            seq.block_hashes.append(digest.digest())
        return seq.block_hashes[number]
