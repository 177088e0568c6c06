"""From token ids to the model's space, and back to scores over the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.kernels.interface import Weight
from pellucid.kernels.ranks import rows_of_rank
from pellucid.layers.loading import Loader
from pellucid.models.config import ModelConfig


class Embedding:
    """A table [rows, hidden]: of tokens, or of positions (GPT-2)."""

    def __init__(
        self, loader: Loader, name: str, rows: int, hidden_size: int, scale: float | None = None
    ) -> None:
        self.ops = loader.ops
        self.weight = loader.matrix([f"{name}.weight"], [rows], hidden_size)
        # Gemma was trained with the factor rounded to the dtype of the activations.
        dtype = loader.activation_dtype
        self.scale = 1.0 if scale is None else torch.tensor(scale, dtype=dtype).item()

    def __call__(self, ids: Tensor) -> Tensor:
        """[T] int64 -> [T, hidden]."""
        return self.ops.embedding(ids, self.weight, self.scale)


class TokenEmbedding(Embedding):
    """A table of the vocabulary, whose rows the ranks share: a token is zero on all but one."""

    def __init__(
        self, loader: Loader, name: str, rows: int, hidden_size: int, scale: float | None = None
    ) -> None:
        self.rows = _own_rows(loader, rows)
        super().__init__(loader, name, len(self.rows), hidden_size, scale)

    def __call__(self, ids: Tensor) -> Tensor:
        if self.ops.ranks.size == 1:
            return super().__call__(ids)
        places = ids - self.rows.start
        found = super().__call__(places.clamp(0, len(self.rows) - 1))
        is_here = (places >= 0) & (places < len(self.rows))
        return self.ops.ranks.sum(found.where(is_here.unsqueeze(1), 0))


class LMHead:
    """Scores of every token as the next one.

    `weight` [vocab, hidden], or the rank's rows of it, may be the embedding's.
    """

    def __init__(
        self, loader: Loader, weight: Weight, vocab_size: int, softcap: float | None
    ) -> None:
        self.ops = loader.ops
        self.weight = weight
        self.vocab_size = vocab_size
        self.softcap = softcap

    @classmethod
    def load(cls, loader: Loader, config: ModelConfig, embedding: Embedding) -> LMHead:
        """The head of a model, with the weight of its `embedding` where the two are tied."""
        if config.tie_embeddings:
            weight = embedding.weight
        else:
            rows = len(_own_rows(loader, config.vocab_size))
            weight = loader.matrix(["lm_head.weight"], [rows], config.hidden_size)
        return cls(loader, weight, config.vocab_size, config.logits_softcap)

    def __call__(self, rows: Tensor) -> Tensor:
        """[n, hidden] -> [n, vocab] float32; of several ranks, on the first."""
        logits = self.ops.ranks.joined(self.ops.logits(rows, self.weight), self.vocab_size)
        return logits if self.softcap is None else self.ops.softcap(logits, self.softcap)


def _own_rows(loader: Loader, count: int) -> range:
    """This rank's, of `count` rows of the vocabulary."""
    return rows_of_rank(count, loader.ops.ranks.rank, loader.ops.ranks.size)
