"""How layers get their tensors: one at a time, checked, in the dtype and on the device asked for.

A source holds dense tensors under canonical names: those of the architecture's Hugging Face
checkpoints, every projection as [out, in] and unfused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pellucid.errors import ModelError
from pellucid.kernels.reference import ReferenceOps


class WeightSource(Protocol):
    """Where weights come from: a file, or `models.registry.random_weights`."""

    def names(self) -> list[str]: ...

    def get(self, name: str, dtype: torch.dtype) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Loader:
    """What every layer needs to build itself."""

    source: WeightSource
    ops: ReferenceOps
    dtype: torch.dtype
    device: torch.device

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
