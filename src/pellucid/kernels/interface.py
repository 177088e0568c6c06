"""The ops that models are written in. Each device implements them; the reference is the oracle.

`reference.py` implements every op in plain torch. A faster backend derives from it and overrides
what it has, so a missing kernel falls back instead of failing. Nothing here imports the rest of
pellucid.

Shapes: T tokens of the step over S sequences, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CACHE_LINE = 64  # bytes


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
    plan: object | None = None  # what the backend's plan_attention prepared, once per step


@dataclass(slots=True)
class KVLayer:
    """One layer's pool: [num_blocks, block_size, G, D] each."""

    k: Tensor
    v: Tensor


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
    return [
        KVLayer(_zeros(shape, dtype, device), _zeros(shape, dtype, device))
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
