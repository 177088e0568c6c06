"""Allowed tokens as bits, put onto logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.sample.transfer import to_device


def pack_allowed(allowed: Sequence[NDArray[np.int64]], vocab_size: int) -> NDArray[np.int32]:
    """The bits of masks for `apply_bitmask`, [m, V / 32 rounded up], of token ids to be allowed."""
    bits = np.zeros((len(allowed), -(-vocab_size // 32) * 32), np.uint8)
    for row, ids in zip(bits, allowed, strict=True):
        row[ids] = 1
    words = np.packbits(bits, axis=1, bitorder="little").view("<i4")
    return words.astype(np.int32, copy=False)


def apply_bitmask(
    logits: Tensor | NDArray[np.float32], places: Sequence[int], masks: NDArray[np.uint32]
) -> None:
    """Set the logits of forbidden tokens to -inf, in place.

    Args:
        logits: [n, V].
        places: [m] rows of `logits`.
        masks: [m, V / 32 rounded up]; bit i % 32 of word i // 32 is set if token i is allowed.
    """
    vocab_size = logits.shape[1]
    forbidden = np.unpackbits(
        (~masks).astype("<u4", copy=False).view(np.uint8), axis=1, bitorder="little"
    )[:, :vocab_size]
    for place, row in zip(places, forbidden.view(np.bool_), strict=True):
        if isinstance(logits, np.ndarray):
            logits[place, row] = -np.inf
            continue
        logits[place].masked_fill_(to_device(row, logits.device), -torch.inf)
