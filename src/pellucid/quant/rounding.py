"""Rounding dense matrices to integers: weight-only quantisation while a model is loaded.

Groups of 32 columns share a scale (and, with 4 bits, a minimum), which is an fp16, so that nothing
but the integers themselves is rounded where kernels store scales in 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.kernels.interface import IntegerMatrix
from pellucid.quant.gguf_integers import row_chunks

GROUP = 32

Floats = NDArray[np.float32]


def can_round(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape is a matrix of whole groups."""
    return len(shape) == 2 and shape[1] % GROUP == 0


def round_rows(w: Floats, bits: int) -> IntegerMatrix:
    """`w` [n, k] as 8-bit integers around zero, or 4-bit ones above a minimum."""
    groups = w.reshape(len(w), -1, GROUP)
    rounded = _round_to_8(groups) if bits == 8 else _round_to_4(groups)
    q, scales, minima = rounded
    flat = q.astype(np.uint8).reshape(w.shape)
    if minima is None:
        return IntegerMatrix(flat, scales, bits=8, zero=128)
    return IntegerMatrix(flat, scales, minima, bits=4)


def round_matrix(
    rows: Callable[[slice], Floats], shape: tuple[int, int], bits: int
) -> Iterator[IntegerMatrix]:
    """A matrix whose rows are asked for in chunks (see `Matrix.integers`)."""
    return (round_rows(rows(chunk), bits) for chunk in row_chunks(shape))


def round_tensor(w: Tensor, bits: int) -> IntegerMatrix:
    """`round_rows` on the device where `w` lies: the same numbers, sooner on a GPU."""
    groups, minima = w.reshape(len(w), -1, GROUP), None
    if bits == 8:
        scales = _divided(groups.abs().amax(-1), 127)
        q = ((groups * _tensor_inverse(scales)).round_() + 128).clamp_(1, 255)
    else:
        minima = groups.amin(-1).half().float()
        scales = _divided(groups.amax(-1) - minima, 15)
        q = ((groups - minima.unsqueeze(-1)) * _tensor_inverse(scales)).round_().clamp_(0, 15)
    flat = q.to(torch.uint8).view(w.shape).cpu().numpy()
    if minima is None:
        return IntegerMatrix(flat, scales.cpu().numpy(), bits=8, zero=128)
    return IntegerMatrix(flat, scales.cpu().numpy(), minima.cpu().numpy(), bits=4)


def join(chunks: Iterable[IntegerMatrix]) -> Floats:
    """The values of a chunked matrix."""
    return np.concatenate([chunk.dense() for chunk in chunks])


def _round_to_8(groups: Floats) -> tuple[Floats, Floats, None]:
    scales = _to_half(np.abs(groups).max(-1) / 127)
    q = np.rint(groups * _inverse(scales)) + 128
    return q.clip(1, 255), scales, None


def _round_to_4(groups: Floats) -> tuple[Floats, Floats, Floats]:
    minima = _to_half(groups.min(-1))
    scales = _to_half((groups.max(-1) - minima) / 15)
    q = np.rint((groups - minima[..., None]) * _inverse(scales))
    return q.clip(0, 15), scales, minima


def _to_half(values: Floats) -> Floats:
    return values.astype(np.float16).astype(np.float32)


def _inverse(scales: Floats) -> Floats:
    """1 / scale, and 0 where all is zero, with an axis for the columns of a group."""
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)[..., None]


def _divided(values: Tensor, divisor: int) -> Tensor:
    """The quotient, as near as an fp16 comes; divided by a number, a GPU multiplies with 1 / it."""
    return (values / torch.full_like(values, divisor)).half().float()


def _tensor_inverse(scales: Tensor) -> Tensor:
    return torch.where(scales > 0, 1 / scales, 0.0).unsqueeze(-1)
