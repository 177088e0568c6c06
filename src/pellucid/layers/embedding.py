"""From token ids to the model's space, and back to scores over the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.kernels.interface import Weight
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


class LMHead:
    """Scores of every token as the next one. `weight` [vocab, hidden] may be the embedding's."""

    def __init__(self, loader: Loader, weight: Weight, softcap: float | None) -> None:
        self.ops = loader.ops
        self.weight = weight
        self.softcap = softcap

    @classmethod
    def load(cls, loader: Loader, config: ModelConfig, embedding: Embedding) -> LMHead:
        """The head of a model, with the weight of its `embedding` where the two are tied."""
        if config.tie_embeddings:
            weight = embedding.weight
        else:
            weight = loader.matrix(["lm_head.weight"], [config.vocab_size], config.hidden_size)
        return cls(loader, weight, config.logits_softcap)

    def __call__(self, rows: Tensor) -> Tensor:
        """[n, hidden] -> [n, vocab] float32."""
        logits = self.ops.logits(rows, self.weight)
        return logits if self.softcap is None else self.ops.softcap(logits, self.softcap)
