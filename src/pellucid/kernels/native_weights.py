"""Matrices in the packed form that the native kernels read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pellucid.kernels.interface import IntegerMatrix, LowRank, Matrix
from pellucid.kernels.lora import LoraSlot

if TYPE_CHECKING:
    from pellucid import _native

STRIP = 16  # rows of a matrix that are packed together


@dataclass(frozen=True, slots=True)
class NativeWeight:
    """A matrix [n, k]: packed pieces, one above the other, each of one format.

    There are several where a file keeps the projections that are stacked in different types.
    """

    pieces: tuple[_native.PackedWeight, ...]

    @property
    def n(self) -> int:
        return sum(piece.n for piece in self.pieces)

    @property
    def k(self) -> int:
        return self.pieces[0].k

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)

    @property
    def table(self) -> _native.PackedWeight:
        """The matrix as one piece, as a lookup of rows and an expert need it."""
        if len(self.pieces) != 1:
            raise ValueError(f"a table or an expert of {len(self.pieces)} formats cannot be read")
        return self.pieces[0]


def pack_matrices(parts: Sequence[Matrix], dtype: torch.dtype) -> NativeWeight:
    """Quantised parts keep their integers; others become bfloat16 or float32, as `dtype` says."""
    pieces: list[_native.PackedWeight] = []
    for part in parts:
        chunks = part.integers()
        if chunks is None:
            pieces.append(pack_float(part.dense(dtype)))
        else:
            pieces += map(pack_integers, chunks)
    return NativeWeight(tuple(_joined(pieces)))


def pack_integers(matrix: IntegerMatrix) -> _native.PackedWeight:
    """All of one quantised matrix, without loss."""
    from pellucid import _native

    form = {"bits": matrix.bits, "group": matrix.group, "zero": matrix.zero}
    if matrix.super_scales is None:
        return _native.pack_quantised(matrix.q, matrix.scales, matrix.minima, **form)
    return _native.pack_super(
        matrix.q, matrix.scales, matrix.super_scales, matrix.minima, matrix.super_minima, **form
    )


def pack_float(w: Tensor, *, round_x: bool = True) -> _native.PackedWeight:
    """A dense matrix; bfloat16 stays that narrow, everything else becomes float32.

    With `round_x` what is multiplied with bfloat16 may be rounded to it, too.
    """
    from pellucid import _native

    # Pairs of columns share a load in bfloat16. float16 widens to float32, which loses nothing.
    if w.dtype == torch.bfloat16 and w.shape[1] % 2 == 0:
        return _native.pack_bfloat16(
            w.contiguous().view(torch.uint16).numpy(), round_activations=round_x
        )
    return _native.pack_float(w.float().contiguous().numpy())


class NativeLoraSlot(LoraSlot):
    """Adapters in the tables that programs read. Not to be changed while one runs."""

    @cached_property
    def table(self) -> _native.LoraTable:
        from pellucid import _native

        return _native.LoraTable(self.in_size, self.sizes, self.max_rank)

    def set(self, adapter: int, parts: Sequence[LowRank | None]) -> None:
        stacked = torch.cat([part[0] for part in parts if part is not None])
        ups = [None if part is None else pack_float(part[1], round_x=False) for part in parts]
        self.table.set(adapter, pack_float(stacked, round_x=False), ups)

    def remove(self, adapter: int) -> None:
        self.table.remove(adapter)


def _joined(pieces: list[_native.PackedWeight]) -> list[_native.PackedWeight]:
    """The same rows in as few pieces as their formats allow."""
    runs = [[pieces[0]]]
    for above, piece in pairwise(pieces):
        if above.n % STRIP == 0 and _format(above) == _format(piece):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return [_concatenated(run) for run in runs]


def _concatenated(run: list[_native.PackedWeight]) -> _native.PackedWeight:
    """Strips lie one after the other, so whole ones can be put together as bytes."""
    if len(run) == 1:
        return run[0]
    from pellucid import _native

    data = np.concatenate([piece.to_bytes() for piece in run])
    rows = sum(piece.n for piece in run)
    return _native.PackedWeight.from_bytes(rows, run[0].k, run[0].format, data)


def _format(piece: _native.PackedWeight) -> tuple[object, ...]:
    form = piece.format
    return (
        *(form.kind, form.scale_kind, form.group, form.zero),
        *(form.has_minima, form.round_activations),
    )
