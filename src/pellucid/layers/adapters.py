"""The LoRA adapters of a model: what they change, and which rows of a step have one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pellucid.kernels.interface import LowRank
from pellucid.kernels.lora import AdaptedRows, LoraSlot
from pellucid.kernels.reference import ReferenceOps


class Adapters:
    """All products of a model that adapters may change, filled while the model is built.

    Args:
        max_rank: the largest that an adapter may have.
        dtype: of the model's float weights, to which adapters are rounded, too.
    """

    def __init__(
        self, ops: ReferenceOps, max_rank: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.max_rank = max_rank
        self._dtype = dtype
        self._ops = ops
        self._device = device
        self._rows = AdaptedRows()
        self._slots: list[tuple[list[str], LoraSlot]] = []

    def slot(self, names: Sequence[str], sizes: Sequence[int], in_size: int) -> LoraSlot:
        """Room at the product of the projections `names`, which have `sizes` outputs."""
        slot = self._ops.lora_slot(sizes, in_size, self.max_rank, self._rows, self._device)
        self._slots.append((list(names), slot))
        return slot

    def load(self, adapter: int, updates: Mapping[str, LowRank]) -> None:
        """Keep what an adapter adds to each projection, by the projection's canonical name."""
        for names, slot in self._slots:
            parts = [self._rounded(updates.get(name)) for name in names]
            if any(part is not None for part in parts):
                slot.set(adapter, parts)

    def unload(self, adapter: int) -> None:
        """Forget an adapter. No row of a later step may have it."""
        for _, slot in self._slots:
            slot.remove(adapter)

    def _rounded(self, update: LowRank | None) -> LowRank | None:
        return update and (update[0].to(self._dtype), update[1].to(self._dtype))

    @contextmanager
    def rows(self, groups: list[tuple[int, Tensor]]) -> Iterator[None]:
        """While this is open, the model's step has adapters: see `AdaptedRows`."""
        self._rows.groups = groups
        try:
            yield
        finally:
            self._rows.groups = []
