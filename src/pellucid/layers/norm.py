"""Norms. Their weights stay in float32, as the arithmetic does."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.layers.loading import Loader


class RMSNorm:
    """Unit root mean square over the last dimension. Gemma's 1 + w is in the weight already."""

    def __init__(self, loader: Loader, name: str, size: int, eps: float) -> None:
        self.ops = loader.ops
        self.weight = loader.tensor(f"{name}.weight", (size,), torch.float32)
        self.size = size
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)

    def add(self, update: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The norm of `residual + update`, and that sum; without a residual, of `update`."""
        return self.ops.add_rms_norm(update, residual, self.weight, self.eps)


class LayerNorm:
    """Zero mean and unit variance over the last dimension, then scale and shift (GPT-2)."""

    def __init__(self, loader: Loader, name: str, size: int, eps: float) -> None:
        self.ops = loader.ops
        self.weight = loader.tensor(f"{name}.weight", (size,), torch.float32)
        self.bias = loader.tensor(f"{name}.bias", (size,), torch.float32)
        self.eps = eps

    def add(self, update: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The norm of `residual + update`, and that sum; without a residual, of `update`."""
        return self.ops.add_layer_norm(update, residual, self.weight, self.bias, self.eps)
