"""A paged KV pool for tests: sequences with scattered blocks, all other slots poisoned."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, KVLayer


@dataclass
class Pool:
    """Hands out blocks in random order and builds the inputs of steps."""

    block_size: int
    num_blocks: int
    tables: list[list[int]] = field(default_factory=list)
    seed: int = 0

    def __post_init__(self) -> None:
        self._free = list(range(1, self.num_blocks))
        random.Random(self.seed).shuffle(self._free)

    def add_sequence(self, length: int) -> int:
        """Reserve blocks for `length` tokens; returns the sequence's number."""
        count = -(-length // self.block_size)
        self.tables.append([self._free.pop() for _ in range(count)])
        return len(self.tables) - 1

    def slots(self, sequence: int, start: int, count: int) -> list[int]:
        table, size = self.tables[sequence], self.block_size
        return [table[p // size] * size + p % size for p in range(start, start + count)]

    def poisoned(self, kv_heads: int, head_dim: int, dtype: torch.dtype = torch.float32) -> KVLayer:
        shape = (self.num_blocks, self.block_size, kv_heads, head_dim)
        nan = float("nan")
        return KVLayer(torch.full(shape, nan, dtype=dtype), torch.full(shape, nan, dtype=dtype))

    def inputs(self, chunks: list[tuple[int, int, int]]) -> AttentionInputs:
        """A step of chunks (sequence, first position, tokens)."""
        lengths = [count for _, _, count in chunks]
        ends = [start + count for _, start, count in chunks]
        positions = [p for _, start, count in chunks for p in range(start, start + count)]
        slots = [slot for chunk in chunks for slot in self.slots(*chunk)]
        width = max((len(self.tables[s]) for s, _, _ in chunks), default=0)
        tables = [self.tables[s] + [0] * (width - len(self.tables[s])) for s, _, _ in chunks]
        starts = torch.tensor([0, *lengths]).cumsum(0)
        return AttentionInputs(
            positions=torch.tensor(positions, dtype=torch.int64),
            slot_mapping=torch.tensor(slots, dtype=torch.int64),
            block_tables=torch.tensor(tables, dtype=torch.int32).view(len(chunks), width),
            query_start=starts.to(torch.int32),
            seq_lens=torch.tensor(ends, dtype=torch.int32),
            query_lens_list=lengths,
            seq_lens_list=ends,
        )


def random_rows(length: int, heads: int, head_dim: int, seed: int) -> Tensor:
    """[length, heads, head_dim] float32."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(length, heads, head_dim, generator=generator, device="cpu")
    return noise.to(torch.get_default_device())
