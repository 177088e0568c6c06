"""Low-rank updates of a product's result (Hu et al. 2021, LoRA), for each row its adapter's.

    y = x W^T + (x A^T) B^T        A [rank, in], B [out, rank], its scale included

Several projections of one input are stacked in a product's weight; each has an A and a B of its
own, and an adapter need not have them for all. An adapter is a number, under which every product
that it changes keeps its part. Whatever type A and B are held in, sums are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pellucid.kernels.interface import LowRank

NO_ADAPTER = -1

Multiply = Callable[[Tensor, Tensor], Tensor]
"""x [n, in] and w [out, in] to [n, out]."""


@dataclass(slots=True)
class AdaptedRows:
    """Which rows of the step have an adapter; one for all products of a model.

    `groups` has the number of each adapter and its rows, int64 on the model's device.
    """

    groups: list[tuple[int, Tensor]] = field(default_factory=list)


class LoraSlot:
    """What adapters add to one product, as the reference keeps it.

    Args:
        sizes: outputs of the projections that are stacked.
        in_size: their inputs.
        max_rank: of any A.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        in_size: int,
        max_rank: int,
        rows: AdaptedRows,
        device: torch.device,
    ) -> None:
        self.sizes = list(sizes)
        self.in_size = in_size
        self.max_rank = max_rank
        self.rows = rows
        self._device = device
        # (first column of y, A, B) of each projection that the adapter changes.
        self._updates: dict[int, list[tuple[int, Tensor, Tensor]]] = {}

    def set(self, adapter: int, parts: Sequence[LowRank | None]) -> None:
        """Keep an adapter's part: one entry for each of the projections."""
        kept, column = [], 0
        for size, part in zip(self.sizes, parts, strict=True):
            if part is not None:
                a, b = (matrix.to(self._device, torch.float32).contiguous() for matrix in part)
                kept.append((column, a, b))
            column += size
        self._updates[adapter] = kept

    def remove(self, adapter: int) -> None:
        """Forget an adapter, if it is known here."""
        self._updates.pop(adapter, None)

    def add(self, y: Tensor, x: Tensor, multiply: Multiply) -> Tensor:
        """`y` [T, out] with the updates of the step's rows; those without one keep their bits."""
        out = y.clone()
        for adapter, rows in self.rows.groups:
            updates = self._updates.get(adapter)
            if not updates:
                continue
            here = x.index_select(0, rows).float()
            for column, a, b in updates:
                columns = out[:, column : column + len(b)]
                update = multiply(multiply(here, a), b)
                total = columns.index_select(0, rows).float() + update
                columns.index_copy_(0, rows, total.to(y.dtype))
        return out
