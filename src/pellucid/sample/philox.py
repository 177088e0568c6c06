"""Stateless randomness: a number is a function of (seed, position, draw) and of nothing else.

No generator has a state to carry, so an answer cannot depend on who else is in the batch, and a
request that was preempted goes on with the numbers it would have had.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]  # 32-bit words in 64-bit integers, so that products are exact

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]
) -> tuple[Words, Words, Words, Words]:
    """Philox-4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _32) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _32) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def uniform(
    seeds: NDArray[np.int64], positions: NDArray[np.int64], draw: int = 0
) -> NDArray[np.float64]:
    """One number in [0, 1) per (seed, position), a multiple of 2^-52.

    Args:
        seeds: [n]; all 64 bits count.
        positions: [n], not negative: where in its sequence the token to be chosen will stand.
        draw: distinguishes several numbers for the same token.
    """
    seed = seeds.astype(np.uint64)
    position = positions.astype(np.uint64)
    counter = (position & _LOW, position >> _32, np.full_like(seed, draw), np.zeros_like(seed))
    high, low, _, _ = philox4x32(counter, (seed & _LOW, seed >> _32))
    bits = (high << np.uint64(20)) | (low >> np.uint64(12))
    return bits.astype(np.float64) * 2.0**-52
