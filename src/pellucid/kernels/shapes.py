"""Sizes of a model and of a step, for whoever measures ops on them, whatever the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pellucid.kernels.interface import AttentionInputs

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Shapes:
    """The sizes of a model that its ops depend on."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @classmethod
    def of(cls, config: Any) -> Shapes:
        """Those of a `ModelConfig`."""
        return cls(
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            vocab=config.vocab_size,
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each product."""
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "qkv": (query + 2 * kv, self.hidden),
            "out": (self.hidden, query),
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
            "head": (self.vocab, self.hidden),
        }


def attention_inputs(sequences: list[tuple[int, int]]) -> tuple[AttentionInputs, int]:
    """A step of sequences of (length, tokens of it in the step), and the blocks that they take."""
    lengths = torch.tensor([length for length, _ in sequences])
    counts = torch.tensor([count for _, count in sequences])
    blocks = -(-lengths // BLOCK_SIZE)
    first = blocks.cumsum(0) - blocks
    tables = torch.arange(int(blocks.max())) + first.unsqueeze(1)
    tables[tables >= (first + blocks).unsqueeze(1)] = 0
    positions = torch.cat([torch.arange(length - count, length) for length, count in sequences])
    starts = torch.repeat_interleave(first * BLOCK_SIZE, counts)
    inputs = AttentionInputs(
        positions=positions,
        slot_mapping=starts + positions,
        block_tables=tables.to(torch.int32),
        query_start=torch.cat((torch.zeros(1), counts.cumsum(0))).to(torch.int32),
        seq_lens=lengths.to(torch.int32),
        query_lens_list=counts.tolist(),
        seq_lens_list=lengths.tolist(),
    )
    return inputs, int(blocks.sum())
