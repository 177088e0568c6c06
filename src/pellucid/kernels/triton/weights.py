"""Quantised matrices as the product reads them: integers, and scales per group of columns.

Columns are padded to a multiple of 64. Four-bit integers of columns c and c + 32 of each 64 share a
byte, the first in its low half: both halves of a load are then 32 neighbouring columns. Scales and
minima are float16 where that loses nothing, which is so in most formats, and float32 otherwise.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pellucid.kernels.interface import IntegerMatrix, Matrix

BLOCK_K = 64  # columns that are padded and packed together


@dataclass(frozen=True, slots=True)
class IntegerWeight:
    """A matrix [n, k]: w = scale * (q - zero) + minimum, of one format."""

    q: Tensor  # uint8 [n, padded k], or with 4 bits [n, padded k / 2]
    scales: Tensor  # float16 or float32 [n, padded k / group]
    minima: Tensor | None  # likewise
    k: int
    bits: int
    group: int
    zero: int
    dtype: torch.dtype  # of the dense matrix that this stands for

    def __len__(self) -> int:
        return len(self.q)

    @property
    def nbytes(self) -> int:
        minima = 0 if self.minima is None else self.minima.nbytes
        return self.q.nbytes + self.scales.nbytes + minima

    def rows(self, ids: Tensor) -> Tensor:
        """Dense rows [ids, k]."""
        q = self.q[ids]
        if self.bits == 4:
            halves = q.unflatten(1, (-1, BLOCK_K // 2))
            q = torch.stack((halves & 15, halves >> 4), dim=2).flatten(1)
        w = (q.float() - self.zero).unflatten(1, (-1, self.group))
        w = w * self.scales[ids].float().unsqueeze(2)
        if self.minima is not None:
            w = w + self.minima[ids].float().unsqueeze(2)
        return w.flatten(1)[:, : self.k].to(self.dtype)


@dataclass(frozen=True, slots=True)
class StackedWeight:
    """Matrices of k columns, one above the other; a file may keep them in different formats."""

    pieces: tuple[IntegerWeight | Tensor, ...]  # dense where one is not quantised

    @property
    def n(self) -> int:
        return sum(len(piece) for piece in self.pieces)

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)

    def rows(self, ids: Tensor) -> Tensor:
        """Dense rows [ids, k] of a matrix that stands alone."""
        (piece,) = self.pieces
        return piece[ids] if isinstance(piece, Tensor) else piece.rows(ids)


def pack(parts: Sequence[Matrix], dtype: torch.dtype, device: torch.device) -> StackedWeight | None:
    """`parts`, one above the other; None if none of them is quantised."""
    integers = [part.integers() for part in parts]
    if all(chunks is None for chunks in integers):
        return None
    return StackedWeight(
        tuple(
            part.dense(dtype).to(device) if chunks is None else pack_integers(chunks, dtype, device)
            for part, chunks in zip(parts, integers, strict=True)
        )
    )


def pack_integers(
    chunks: Iterable[IntegerMatrix], dtype: torch.dtype, device: torch.device
) -> IntegerWeight:
    """A matrix that comes in chunks of rows."""
    q, scales, minima = [], [], []
    for chunk in chunks:
        bits = 4 if chunk.bits == 4 and chunk.group == BLOCK_K // 2 else 8
        q.append(_packed(chunk.q, bits))
        chunk_scales, chunk_minima = chunk.float_scales()
        scales.append(_padded(chunk_scales, BLOCK_K // chunk.group))
        if chunk_minima is not None:
            minima.append(_padded(chunk_minima, BLOCK_K // chunk.group))
    return IntegerWeight(
        q=torch.cat(q).to(device),
        scales=_narrowed(torch.cat(scales)).to(device),
        minima=_narrowed(torch.cat(minima)).to(device) if minima else None,
        k=chunk.q.shape[1],
        bits=bits,
        group=chunk.group,
        zero=chunk.zero,
        dtype=dtype,
    )


def _packed(q: NDArray[np.uint8], bits: int) -> Tensor:
    padded = _padded(q, BLOCK_K)
    if bits == 8:
        return padded
    halves = padded.unflatten(1, (-1, 2, BLOCK_K // 2))
    return (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1)


def _padded(values: NDArray[np.generic], multiple: int) -> Tensor:
    """Columns up to the next multiple. Zeros: a scale of 0 makes a weight of 0."""
    found = torch.from_numpy(np.ascontiguousarray(values))
    return F.pad(found, (0, -found.shape[1] % multiple))


def _narrowed(values: Tensor) -> Tensor:
    half = values.half()
    return half if torch.equal(half.float(), values) else values
