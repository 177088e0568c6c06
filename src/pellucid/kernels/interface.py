"""The ops that models are written in. Each device implements them; the reference is the oracle.

`reference.py` implements every op in plain torch. A faster backend derives from it and overrides
what it has, so a missing kernel falls back instead of failing. Nothing here imports the rest of
pellucid.

Shapes: T tokens of the step over S sequences, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CACHE_LINE = 64  # bytes
SCALE_DTYPE = torch.float32  # of an int8 KV pool

# Most bytes of partial results that one launch of attention leaves for another to merge.
ATTENTION_WORKSPACE = 128 << 20

Weight = Any
"""A matrix in the form that a backend's `pack` gave it: only that backend's ops look inside."""


LowRank = tuple[Tensor, Tensor]
"""A LoRA adapter's A [rank, in] and B [out, rank] of one projection, in one dtype; see `lora`."""


@dataclass(frozen=True, slots=True)
class Experts:
    """Gated MLPs of which each row is worked on by the `top_k` that score highest.

    `gate` and `up` are [inner, hidden] of each expert, `down` [hidden, inner]. With `normalise` a
    row's shares add up to one over the experts that it chose, otherwise over all.
    """

    gate: Sequence[Weight]
    up: Sequence[Weight]
    down: Sequence[Weight]
    activation: Literal["silu", "gelu_tanh", "gelu"]
    top_k: int
    normalise: bool

    @property
    def nbytes(self) -> int:
        return sum(weight.nbytes for part in (self.gate, self.up, self.down) for weight in part)


@dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """Rows of a quantised matrix, [n, k] as integers with a scale per group of columns.

        w = scale * (q - zero) + minimum

    Scales and minima are float32 [n, k / group]; or int8, to be multiplied by `super_scales` and
    `super_minima` float32 [n, k / 256], as GGUF's K-quants keep them.
    """

    q: NDArray[np.uint8]
    scales: NDArray[Any]
    minima: NDArray[Any] | None = None
    super_scales: NDArray[np.float32] | None = None
    super_minima: NDArray[np.float32] | None = None
    bits: int = 8  # 4 if every q is below 16
    group: int = 32  # 16 or 32
    zero: int = 0  # 0 if there are minima

    def dense(self) -> NDArray[np.float32]:
        """The values themselves, [n, k]."""
        n, k = self.q.shape
        scales, minima = self.float_scales()
        w = (self.q.reshape(n, -1, self.group).astype(np.float32) - self.zero) * scales[..., None]
        if minima is not None:
            w += minima[..., None]
        return w.reshape(n, k)

    def float_scales(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Scales and minima as they are to be applied, float32 [n, k / group]."""
        minima = self.minima
        if minima is not None:
            minima = _multiplied(minima, self.super_minima)
        return _multiplied(self.scales, self.super_scales), minima


def _multiplied(fine: NDArray[Any], coarse: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if coarse is None:
        return fine
    n, supers = coarse.shape
    return (fine.reshape(n, supers, -1) * coarse[..., None]).reshape(fine.shape)


class Matrix(Protocol):
    """A matrix [n, k] that is still where it came from."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def dense(self, dtype: torch.dtype) -> Tensor:
        """All of it, in memory of its own."""
        ...

    def integers(self) -> Iterator[IntegerMatrix] | None:
        """Its rows in chunks, all of one format; None if it is not quantised.

        All chunks but the last have a multiple of 16 rows.
        """
        ...


@dataclass(slots=True)
class AttentionInputs:
    """Where this step's tokens stand; the same for every layer.

    Sequence s owns rows query_start[s] .. query_start[s+1] of the step; its context, this step's
    tokens included, is seq_lens[s] long, so row r of it stands at position
    seq_lens[s] - (query_start[s+1] - query_start[s]) + (r - query_start[s]).
    """

    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64, block * block_size + offset, where each token's K/V goes
    block_tables: Tensor  # [S, max_blocks] int32, padded with 0
    query_start: Tensor  # [S + 1] int32
    seq_lens: Tensor  # [S] int32
    query_lens_list: list[int]  # host copies, so that planning needs no synchronisation
    seq_lens_list: list[int]
    # Not 0 in a step that is replayed, which is planned before its numbers are known: each
    # sequence has one token, no context is longer, and the lists are empty.
    context_limit: int = 0
    plan: object | None = None  # what the backend's plan_attention prepared, once per step


def most_partitions(context_limit: int, window: int | None, partition: int) -> int:
    """How many partitions of a context one token can see, wherever up to the limit it stands."""
    most = -(-context_limit // partition)
    return most if window is None else min(most, (window - 2) // partition + 2)


@dataclass(slots=True)
class KVLayer:
    """One layer's pool: [num_blocks, block_size, G, D] each.

    An int8 pool has a float32 scale for each slot and head, [num_blocks, block_size, G]: what is
    stored stands for scale * int8. Who writes and reads a pool may keep it in another order.
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None


def kv_head_bytes(head_dim: int, dtype: torch.dtype) -> int:
    """What one head of one slot takes in a pool of `dtype`, its scale included."""
    scale_bytes = SCALE_DTYPE.itemsize if dtype == torch.int8 else 0
    return head_dim * dtype.itemsize + scale_bytes


def allocate_kv(
    num_layers: int,
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[KVLayer]:
    """The whole KV pool. Zeroed: a masked slot must not hold NaN."""
    shape = (num_blocks, block_size, num_kv_heads, head_dim)

    def scales() -> Tensor | None:
        return _zeros(shape[:3], SCALE_DTYPE, device) if dtype == torch.int8 else None

    return [
        KVLayer(_zeros(shape, dtype, device), _zeros(shape, dtype, device), scales(), scales())
        for _ in range(num_layers)
    ]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that on the CPU take neither memory nor time until they are written.

    numpy asks for zeroed pages, which the system backs when they are first touched; torch.zeros
    would touch them all. Aligned to cache lines, as torch's own tensors are.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    pages = np.zeros(num_bytes + CACHE_LINE, np.uint8)
    start = -pages.ctypes.data % CACHE_LINE
    return torch.from_numpy(pages[start : start + num_bytes]).view(dtype).view(shape)
