"""How layers get their tensors: one at a time, checked, in the dtype and on the device asked for.

A source holds dense tensors under canonical names: those of the architecture's Hugging Face
checkpoints, every projection as [out, in] and unfused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pellucid.errors import ModelError
from pellucid.kernels.interface import IntegerMatrix, Weight
from pellucid.kernels.reference import ReferenceOps
from pellucid.layers.adapters import Adapters


class WeightSource(Protocol):
    """Where weights come from: a file, or `models.registry.random_weights`."""

    def names(self) -> list[str]: ...

    def get(self, name: str, dtype: torch.dtype) -> Tensor: ...

    def integers(self, name: str) -> Iterator[IntegerMatrix] | None:
        """See `kernels.interface.Matrix`."""
        ...


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix in its source. Implements `kernels.interface.Matrix`."""

    loader: Loader
    name: str
    shape: tuple[int, int]

    def dense(self, dtype: torch.dtype) -> Tensor:
        return self.loader.tensor(self.name, self.shape, dtype)

    def integers(self) -> Iterator[IntegerMatrix] | None:
        return self.loader.source.integers(self.name)


@dataclass(frozen=True, slots=True)
class Loader:
    """What every layer needs to build itself."""

    source: WeightSource
    ops: ReferenceOps
    dtype: torch.dtype
    device: torch.device
    adapters: Adapters | None = None  # where products leave room for them

    @property
    def activation_dtype(self) -> torch.dtype:
        return self.ops.activation_dtype(self.dtype)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """The tensor `name` on the model's device, in `dtype` or else the model's.

        Raises:
            ModelError: the source has no such tensor, or it has another shape.
        """
        wanted = self.dtype if dtype is None else dtype
        found = self.source.get(name, wanted)
        if tuple(found.shape) != shape:
            raise ModelError(f"{name} has shape {tuple(found.shape)}, the model needs {shape}")
        return found.to(device=self.device, dtype=wanted)

    def matrix(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        in_size: int,
        dtype: torch.dtype | None = None,
    ) -> Weight:
        """The matrices `names` [size, in_size], one above the other, as the ops want them.

        What is not quantised is in `dtype`, or else in the model's.

        Raises:
            ModelError: see `tensor`; or a matrix holds numbers that its format does not allow.
        """
        parts = [
            StoredMatrix(self, name, (size, in_size))
            for name, size in zip(names, sizes, strict=True)
        ]
        try:
            return self.ops.pack(parts, self.dtype if dtype is None else dtype, self.device)
        except ValueError as error:
            raise ModelError(f"{', '.join(names)}: {error}") from None
