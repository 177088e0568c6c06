"""Runs a model over a small KV pool: what tests compare is how a sequence was fed to it."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.kernels.interface import allocate_kv
from pellucid.models.base import Model
from tests.kernels.paged import Pool

BLOCK_SIZE = 4


class Stepper:
    """A model with a pool; sequences grow by the chunks they are given."""

    def __init__(
        self, model: Model, sequences: list[list[int]], dtype: torch.dtype, room: int = 0
    ) -> None:
        """`room` is how many tokens may be appended to each of `sequences` later."""
        config = model.config
        lengths = [len(tokens) + room for tokens in sequences]
        blocks = 1 + sum(-(-length // BLOCK_SIZE) for length in lengths)
        self.model = model
        self.sequences = sequences
        self.pool = Pool(BLOCK_SIZE, blocks)
        for length in lengths:
            self.pool.add_sequence(length)
        self.done = [0] * len(sequences)
        self.kv = allocate_kv(
            config.num_layers,
            blocks,
            BLOCK_SIZE,
            config.num_kv_heads,
            config.head_dim,
            dtype,
            torch.device("cpu"),
        )

    @torch.inference_mode()
    def step(self, counts: dict[int, int]) -> list[Tensor]:
        """Feed `counts[s]` more tokens of each sequence s; their logits [count, vocab]."""
        chunks = [(s, self.done[s], count) for s, count in counts.items()]
        tokens = [t for s, start, n in chunks for t in self.sequences[s][start : start + n]]
        hidden = self.model.forward(torch.tensor(tokens), self.pool.inputs(chunks), self.kv)
        for s, _, count in chunks:
            self.done[s] += count
        return list(torch.split(self.model.logits(hidden), list(counts.values())))


def logits(model: Model, tokens: list[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """[tokens, vocab] of a sequence fed at once."""
    return Stepper(model, [tokens], dtype).step({0: len(tokens)})[0]


def random_tokens(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (count,), generator=generator).tolist()
