"""Projections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.kernels.reference import ReferenceOps
from pellucid.layers.loading import Loader


class Linear:
    """`x W^T + b`; W [out, in] may stack several projections of the same input."""

    def __init__(self, ops: ReferenceOps, weight: Tensor, bias: Tensor | None = None) -> None:
        self.ops = ops
        self.weight = weight
        self.bias = bias

    @classmethod
    def load(
        cls, loader: Loader, names: Sequence[str], sizes: Sequence[int], in_size: int, bias: bool
    ) -> Linear:
        """Stack the projections `names` with `sizes` outputs; each has a bias, or none has.

        One product over stacked weights reads the input once and keeps a device busier. Rows are
        copied into place one projection at a time, so that no weight is held twice.
        """

        def stacked(suffix: str, *inner: int) -> Tensor:
            whole = torch.empty(sum(sizes), *inner, dtype=loader.dtype, device=loader.device)
            for name, size, rows in zip(names, sizes, torch.split(whole, list(sizes)), strict=True):
                rows.copy_(loader.tensor(f"{name}.{suffix}", (size, *inner)))
            return whole

        return cls(loader.ops, stacked("weight", in_size), stacked("bias") if bias else None)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        return self.ops.linear(x, self.weight, self.bias)
