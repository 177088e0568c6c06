"""The paged KV cache: who holds which block, and which blocks hold a known prefix.

K/V memory is a pool of blocks of `block_size` tokens. A request owns a `block_table`, the blocks of
its sequence in order. A block that is full and computed gets a name, a hash chained over everything
before it, under which later requests find it: equal prefixes share blocks. When its last holder
leaves, a named block stays in the free list, least recently used first, until its memory is needed.

    free list   [ unnamed ... | named, oldest ......... newest ]
                  taken first                    taken last, or found again by name

This module moves numbers, not tensors; the runner owns the memory the numbers stand for.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from pellucid.engine.request import Request


class KVCacheManager:
    """Blocks of one pool: reference counts, names and the free list."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._ref_counts = [0] * num_blocks
        self._names: list[bytes | None] = [None] * num_blocks
        self._by_name: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        # Names that a running request is about to earn; a request that needs the same block is
        # better off waiting a step than computing it a second time.
        self._in_progress: dict[bytes, str] = {}
        # Where somebody watches: b for a block that gained its name, ~b for one that lost it.
        self.journal: list[int] | None = None

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    @property
    def num_named(self) -> int:
        return len(self._by_name)

    @property
    def capacity_tokens(self) -> int:
        return self.num_blocks * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    # ---- a request's way in and out

    def find_prefix(self, request: Request) -> list[int]:
        """Blocks with the longest cached prefix of `request`: at most `num_tokens - 1` tokens.

        One token must be left to compute, or there would be no logits. Nothing is taken yet.
        """
        found: list[int] = []
        for name in self._findable(request):
            block = self._by_name.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def is_in_progress(self, request: Request, num_found: int) -> bool:
        """Whether a running request is computing the block that follows the found prefix."""
        names = self._findable(request)
        return num_found < len(names) and names[num_found] in self._in_progress

    def allocate(
        self, request: Request, num_tokens: int, prefix: Sequence[int] = ()
    ) -> list[int] | None:
        """Grow the block table to `num_tokens`, a found prefix first.

        Returns the block ids that were added, or None, with nothing changed, if the pool is short.
        """
        needed = self.blocks_for(num_tokens) - len(request.block_table) - len(prefix)
        if needed == 0:
            return []  # the common case of a decode: the last block has room
        if needed > len(self._free) - sum(self._ref_counts[b] == 0 for b in prefix):
            return None
        for block in prefix:
            self._hold(block)
        entering = not request.block_table
        added = [*prefix, *(self._take_free() for _ in range(needed))]
        request.block_table.extend(added)
        if entering:
            request.num_named_blocks = len(prefix)
            self._announce(request)
        return added

    def commit(self, request: Request) -> None:
        """Name the blocks that became full and computed. Call after every step of the request."""
        full = request.num_computed_tokens // self.block_size
        if not self.prefix_caching or full == request.num_named_blocks:
            return
        names = self._names_of(request, full)
        for index in range(request.num_named_blocks, full):
            block, name = request.block_table[index], names[index]
            self._end_progress(name, request)
            if name not in self._by_name:  # else a twin was computed meanwhile; ours stays unnamed
                self._by_name[name] = block
                self._names[block] = name
                if self.journal is not None:
                    self.journal.append(block)
        request.num_named_blocks = full

    def free(self, request: Request) -> None:
        """Give all blocks back; they can still be found by name until their memory is taken."""
        for name in request.block_hashes:
            self._end_progress(name, request)
        for block in reversed(request.block_table):  # tails are worth less than heads
            self._release(block)
        request.block_table.clear()
        request.num_named_blocks = 0

    def forget(self, blocks: Iterable[int]) -> None:
        """Drop the names of blocks, if they have one: their content is gone."""
        for block in blocks:
            self._unname(block)

    def named_blocks(self) -> list[int]:
        """Blocks that can be found by name, whoever holds them."""
        return list(self._by_name.values())

    # ---- names

    def _names_of(self, request: Request, num_blocks: int) -> list[bytes]:
        """Chained hashes of the first full blocks; computed once and kept with the request.

        SHA-256, because a collision would show one user's context to another.
        """
        hashes, size = request.block_hashes, self.block_size
        while len(hashes) < num_blocks:
            index = len(hashes)
            parent = hashes[-1] if hashes else _root(request)
            tokens = array("i", request.token_ids[index * size : (index + 1) * size]).tobytes()
            # The index tells a root from a parent, and tokens of a block are always as many bytes.
            place = index.to_bytes(4, "little")
            hashes.append(hashlib.sha256(place + parent + tokens).digest())
        return hashes[:num_blocks] if len(hashes) > num_blocks else hashes

    def _findable(self, request: Request) -> list[bytes]:
        """Names of the blocks that `request` may take from others."""
        if not self.prefix_caching or request.needs_every_position:
            return []
        return self._names_of(request, (request.num_tokens - 1) // self.block_size)

    def _announce(self, request: Request) -> None:
        for name in request.block_hashes[request.num_named_blocks :]:
            self._in_progress.setdefault(name, request.request_id)

    def _end_progress(self, name: bytes, request: Request) -> None:
        if self._in_progress.get(name) == request.request_id:
            del self._in_progress[name]

    # ---- blocks

    def _hold(self, block: int) -> None:
        if self._ref_counts[block] == 0:
            del self._free[block]
        self._ref_counts[block] += 1

    def _take_free(self) -> int:
        block, _ = self._free.popitem(last=False)
        self._unname(block)
        self._ref_counts[block] = 1
        return block

    def _unname(self, block: int) -> None:
        name = self._names[block]
        if name is not None:
            del self._by_name[name]
            self._names[block] = None
            if self.journal is not None:
                self.journal.append(~block)

    def _release(self, block: int) -> None:
        self._ref_counts[block] -= 1
        if self._ref_counts[block] == 0:
            self._free[block] = None
            if self._names[block] is None:
                self._free.move_to_end(block, last=False)

    # ---- invariants

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Recount everything from the block tables; raise AssertionError if anything differs."""
        holders = [0] * self.num_blocks
        live = list(requests)
        for request in live:
            if len(set(request.block_table)) != len(request.block_table):
                raise AssertionError(f"{request} holds a block twice")
            if len(request.block_table) < self.blocks_for(request.num_computed_tokens):
                raise AssertionError(f"{request} computed more than its blocks hold")
            for block in request.block_table:
                holders[block] += 1
        if holders != self._ref_counts:
            raise AssertionError("reference counts differ from the block tables")
        if set(self._free) != {b for b, count in enumerate(holders) if count == 0}:
            raise AssertionError("free list differs from the blocks that nobody holds")
        if self._by_name != {n: b for b, n in enumerate(self._names) if n is not None}:
            raise AssertionError("names and blocks disagree")
        for request in live:  # a block that will still be written has one holder and no name
            for block in request.block_table[request.num_computed_tokens // self.block_size :]:
                if holders[block] != 1 or self._names[block] is not None:
                    raise AssertionError(f"block {block} of {request} is shared and unwritten")
        if not set(self._in_progress.values()) <= {r.request_id for r in live}:
            raise AssertionError("a block is awaited from a request that has left")


def _root(request: Request) -> bytes:
    """What comes before the first block of a prefix: only equal roots share blocks."""
    salt = (request.cache_salt or "").encode()
    # No UTF-8 begins with 0xff, so no salt looks like an adapter's mark.
    return salt if request.adapter is None else b"\xff" + request.adapter.digest + salt
