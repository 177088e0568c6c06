"""What a program is while it is recorded: which tensor stands for which columns of its buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pellucid.kernels.interface import KVLayer

if TYPE_CHECKING:
    from pellucid import _native

ROWS = 2  # of a recording: with one, the stride between rows would not matter


class Tape:
    """A program while it is recorded, and which tensor stands for which of its buffers."""

    def __init__(self, token_ids: Tensor, positions: Tensor) -> None:
        from pellucid import _native

        self.program = _native.Program()
        self._operand = _native.Columns
        self._pool = _native.KVPool
        self._index = {token_ids.data_ptr(): "tokens", positions.data_ptr(): "positions"}
        # Tensors are kept, so that no two of them can have lain at the same address.
        self._buffers: dict[int, tuple[int, Tensor]] = {}

    def new(self, columns: int) -> Tensor:
        """A tensor [ROWS, columns] that stands for a new buffer."""
        tensor = torch.zeros(ROWS, columns)
        buffer = self.program.add_buffer(columns)
        self._buffers[tensor.untyped_storage().data_ptr()] = (buffer, tensor)
        return tensor

    def columns(self, x: Tensor) -> _native.Columns:
        """Where `x`, [ROWS, ...] and a view of what `new` gave, lies."""
        buffer, whole = self._buffers.get(x.untyped_storage().data_ptr(), (None, x))
        count, begin = x.numel() // ROWS, int(x.storage_offset())
        is_columns = (
            len(x) == ROWS
            and x.stride(0) == whole.shape[1]
            and x[0].is_contiguous()
            and begin + count <= whole.shape[1]
        )
        if buffer is None or not is_columns:
            raise ValueError(f"a tensor of shape {list(x.shape)} is not columns of an op's result")
        return self._operand(buffer, begin, count)

    def adding(
        self, out: Tensor, total: Tensor, update: Tensor, residual: Tensor | None
    ) -> tuple[_native.Columns, _native.Columns, _native.Columns, _native.Columns | None]:
        """The operands of a norm that first adds."""
        added = None if residual is None else self.columns(residual)
        return self.columns(out), self.columns(total), self.columns(update), added

    def pool(self, kv: KVLayer) -> _native.KVPool:
        return self._pool(kv.k, kv.v, kv.k_scale, kv.v_scale)

    def index(self, ids: Tensor) -> str:
        """Which input of the step `ids` are."""
        return self._index[ids.data_ptr()]
