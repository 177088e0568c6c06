"""GGUF tensor blocks -> dense torch tensors.

The block formats are decoded by llama.cpp's own `gguf` package, which is numpy and fast enough
(hundreds of millions of weights per second on one core); what is ours is bounding the memory.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.quant.types import GGML_TYPES_BY_NAME

# Elements decoded at once: the float32 temporaries stay small, and mostly within the cache.
_CHUNK_ELEMENTS = 1 << 20

_DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dequantize(raw: NDArray[np.uint8], ggml_type: str, dtype: torch.dtype) -> Tensor:
    """Decode rows of blocks.

    Args:
        raw: uint8 [rows, bytes per row].
        ggml_type: name of the block format, a key of `GGML_TYPES_BY_NAME`.
        dtype: of the result; rounding happens once, from the exact value of the block.

    Returns:
        [rows, elements per row], memory of its own.
    """
    block = GGML_TYPES_BY_NAME[ggml_type]
    rows, row_bytes = raw.shape
    out = torch.empty(rows, row_bytes // block.block_bytes * block.block_size, dtype=dtype)
    decode = _decoder(ggml_type)
    step = max(1, _CHUNK_ELEMENTS // out.shape[1])
    for start in range(0, rows, step):
        out[start : start + step] = decode(raw[start : start + step])
    return out


def _decoder(ggml_type: str) -> Callable[[NDArray[np.uint8]], Tensor]:
    if ggml_type in _DENSE:
        # Copied first: torch warns of memory it must not write to, such as a mapped file.
        return lambda raw: torch.from_numpy(raw.copy()).view(_DENSE[ggml_type])
    import gguf

    kind = gguf.GGMLQuantizationType[ggml_type]

    def decode(raw: NDArray[np.uint8]) -> Tensor:
        # A damaged file may hold inf or NaN scales; they come out as such, without a warning.
        with np.errstate(all="ignore"):
            return torch.from_numpy(gguf.quants.dequantize(raw, kind))

    return decode
