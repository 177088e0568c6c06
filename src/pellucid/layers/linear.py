"""Projections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.kernels.interface import Weight
from pellucid.kernels.lora import LoraSlot
from pellucid.kernels.reference import ReferenceOps
from pellucid.layers.loading import Loader


class Linear:
    """`x W^T + b`; W [out, in] may stack several projections of the same input."""

    def __init__(
        self,
        ops: ReferenceOps,
        weight: Weight,
        bias: Tensor | None = None,
        lora: LoraSlot | None = None,
    ) -> None:
        self.ops = ops
        self.weight = weight
        self.bias = bias
        self.lora = lora

    @classmethod
    def load(
        cls, loader: Loader, names: Sequence[str], sizes: Sequence[int], in_size: int, bias: bool
    ) -> Linear:
        """Stack the projections `names` with `sizes` outputs; each has a bias, or none has.

        One product over stacked weights reads the input once and keeps a device busier.
        """
        weight = loader.matrix([f"{name}.weight" for name in names], sizes, in_size)
        lora = loader.adapters.slot(names, sizes, in_size) if loader.adapters else None
        if not bias:
            return cls(loader.ops, weight, lora=lora)
        dtype = loader.activation_dtype
        biases = [
            loader.tensor(f"{name}.bias", (size,), dtype)
            for name, size in zip(names, sizes, strict=True)
        ]
        return cls(loader.ops, weight, torch.cat(biases), lora)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        y = self.ops.linear(x, self.weight, self.bias)
        if self.lora is None or not self.lora.rows.groups:
            return y
        return self.ops.add_lora(y, x, self.lora)


class SummedLinear(Linear):
    """A projection whose columns the ranks share, as they do its input: each has a part of the sum.

    Megatron-LM's row-parallel layer (Shoeybi et al. 2019).
    """

    def __call__(self, x: Tensor) -> Tensor:
        return self.ops.ranks.sum(super().__call__(x))
