"""Stateless randomness: a number is a function of (seed, position, draw) and of nothing else.

No generator has a state to carry, so an answer cannot depend on who else is in the batch, and a
request that was preempted goes on with the numbers it would have had.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]  # 32-bit words in 64-bit integers, so that products are exact

_ROUNDS = 10
# A pair of words is the first axis of an array, so that numpy is called once for both.
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
_KEY_STEPS = np.arange(_ROUNDS, dtype=np.uint64)[:, None, None] * _WEYL  # [rounds, 2, 1]
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]
) -> tuple[Words, Words, Words, Words]:
    """Philox-4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011)."""
    c0, c1, c2, c3 = counter
    even, odd = np.array([c0, c2]), np.array([c1, c3])
    for round_key in (np.array(key) + _KEY_STEPS) & _LOW:
        product = (_MULTIPLIERS * even)[::-1]
        even, odd = (product >> _32) ^ odd ^ round_key, product & _LOW
    return even[0], odd[0], even[1], odd[1]


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
