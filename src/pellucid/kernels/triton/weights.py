"""Quantised matrices as the product reads them: integers, and scales per group of columns.

Columns are padded to a multiple of 128. Integers lie in 32-bit words, eight of 4 bits or four of 8.
The words that hold as many groups (of columns with one scale) as a word has room for pairs:

    word w          columns 2w and 2w + 1 of each group; group g's at bits (bits g), (bits g + 16)
    in this order   0 4 8 .. 1 5 9 .. 2 6 10 .. 3 7 11 ..

So one shift and one mask give two neighbours, each at the bottom of its half; and the 16 bytes that
a lane of a warp loads are those that the tensor core wants of it: of a row of 32 columns, lane c of
four multiplies columns 2c, 2c + 1, and those 8, 16 and 24 further on (PTX, fragments of m16n8k16).

Scales and minima are float16 where that loses nothing, which is so in most formats, and float32
otherwise.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pellucid.kernels.interface import IntegerMatrix, Matrix

BLOCK_K = 128  # columns that are padded and packed together


@dataclass(frozen=True, slots=True)
class IntegerWeight:
    """A matrix [n, k]: w = scale * (q - zero) + minimum, of one format."""

    q: Tensor  # int32 [n, padded k * bits / 32]
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

    @property
    def format(self) -> tuple[object, ...]:
        """What weights have in common that can be one."""
        minima = None if self.minima is None else self.minima.dtype
        return self.k, self.bits, self.group, self.zero, self.dtype, self.scales.dtype, minima

    def above(self, other: "IntegerWeight") -> "IntegerWeight":
        """Both as one, this one's rows first; they are of one format."""
        minima = None
        if self.minima is not None and other.minima is not None:
            minima = torch.cat((self.minima, other.minima))
        return replace(
            self,
            q=torch.cat((self.q, other.q)),
            scales=torch.cat((self.scales, other.scales)),
            minima=minima,
        )

    def rows(self, ids: Tensor) -> Tensor:
        """Dense rows [ids, k]."""
        q = _unpacked(self.q[ids], self.bits, self.group)
        w = (q.float() - self.zero).unflatten(1, (-1, self.group))
        w = w * self.scales[ids].float().unsqueeze(2)
        if self.minima is not None:
            w = w + self.minima[ids].float().unsqueeze(2)
        return w.flatten(1)[:, : self.k].to(self.dtype)


@dataclass(frozen=True, slots=True)
class StackedWeight:
    """Matrices of k columns, one above the other; a file may keep them in different formats.

    Neighbours of one format are one piece, and one product.
    """

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
    pieces: list[IntegerWeight | Tensor] = []
    for part, chunks in zip(parts, integers, strict=True):
        if chunks is None:
            pieces.append(part.dense(dtype).to(device))
            continue
        piece = pack_integers(chunks, dtype, device)
        last = pieces[-1] if pieces else None
        if isinstance(last, IntegerWeight) and last.format == piece.format:
            pieces[-1] = last.above(piece)
        else:
            pieces.append(piece)
    return StackedWeight(tuple(pieces))


def pack_integers(
    chunks: Iterable[IntegerMatrix], dtype: torch.dtype, device: torch.device
) -> IntegerWeight:
    """A matrix that comes in chunks of rows. The device packs it, where it has the memory."""
    q, scales, minima = [], [], []
    for chunk in chunks:
        q.append(_packed(_padded(chunk.q, BLOCK_K, device), chunk.bits, chunk.group))
        chunk_scales, chunk_minima = chunk.float_scales()
        scales.append(_padded(chunk_scales, BLOCK_K // chunk.group, device))
        if chunk_minima is not None:
            minima.append(_padded(chunk_minima, BLOCK_K // chunk.group, device))
    return IntegerWeight(
        q=torch.cat(q),
        scales=_narrowed(torch.cat(scales)),
        minima=_narrowed(torch.cat(minima)) if minima else None,
        k=chunk.q.shape[1],
        bits=chunk.bits,
        group=chunk.group,
        zero=chunk.zero,
        dtype=dtype,
    )


def _packed(q: Tensor, bits: int, group: int) -> Tensor:
    """Integers uint8 [n, K], of so many bits, as words int32 [n, K * bits / 32]."""
    pairs = q.unflatten(1, (-1, 16 // bits, group // 2, 2))  # in words of 16 // bits pairs
    words = torch.zeros_like(pairs[:, :, 0, :, 0], dtype=torch.int32)
    for place in range(16 // bits):
        for half in range(2):
            words |= pairs[:, :, place, :, half].int() << (bits * place + 16 * half)
    return words.unflatten(2, (-1, 4)).transpose(2, 3).flatten(1)


def _unpacked(words: Tensor, bits: int, group: int) -> Tensor:
    """The integers of `_packed`, int32 [n, K]."""
    blocks = words.unflatten(1, (-1, 4, group // 8)).transpose(2, 3).flatten(2)
    place = torch.arange(16 // bits, device=words.device).view(-1, 1, 1)
    half = torch.arange(2, device=words.device)
    pairs = blocks[:, :, None, :, None] >> (bits * place + 16 * half)
    return (pairs & ((1 << bits) - 1)).flatten(1)


def _padded(values: NDArray[np.generic], multiple: int, device: torch.device) -> Tensor:
    """Columns up to the next multiple. Zeros: a scale of 0 makes a weight of 0."""
    found = torch.from_numpy(np.ascontiguousarray(values)).to(device)
    return F.pad(found, (0, -found.shape[1] % multiple))


def _narrowed(values: Tensor) -> Tensor:
    half = values.half()
    return half if torch.equal(half.float(), values) else values
