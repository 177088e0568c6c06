"""The numbers of `sample/philox.py`, computed where they are needed."""

import triton
import triton.language as tl

WORD = tl.constexpr(0xFFFFFFFF)
FIRST_MULTIPLIER, SECOND_MULTIPLIER = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
FIRST_STEP, SECOND_STEP = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)
ROUNDS = tl.constexpr(10)
UNIT = tl.constexpr(2.0**-52)


@triton.jit
def uniform(seed_low, seed_high, position_low, position_high, draw):
    """A number in [0, 1), float64, from 32-bit words held in uint64: Philox-4x32-10."""
    c0, c1, c2, c3 = position_low, position_high, draw, draw * 0
    k0, k1 = seed_low, seed_high
    for _ in tl.static_range(ROUNDS):
        first, second = c0 * FIRST_MULTIPLIER, c2 * SECOND_MULTIPLIER
        c0, c1 = (second >> 32) ^ c1 ^ k0, second & WORD
        c2, c3 = (first >> 32) ^ c3 ^ k1, first & WORD
        k0, k1 = (k0 + FIRST_STEP) & WORD, (k1 + SECOND_STEP) & WORD
    return ((c0 << 20) | (c1 >> 12)).to(tl.float64) * UNIT
