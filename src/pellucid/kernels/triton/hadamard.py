"""The transform of heads in an int8 KV pool, step by step as `pellucid.kernels.int8_heads` does it.

A step adds and subtracts neighbours that differ in one bit of their place: the lowest, whose
results then differ in the highest. So each bit comes to be the lowest once, and all end where they
began (Pease 1968). As a product with a matrix it would need more registers, and at 256 columns more
shared memory, than there are.
"""

import triton
import triton.language as tl

MOST_BITS = tl.constexpr(8)  # of a place in heads of 256


@triton.jit
def hadamard(heads, SIZE: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """`heads` [HEADS, BLOCK] float32, each SIZE neighbours of which are transformed together.

    SIZE is a power of two, as BLOCK is.
    """
    x = tl.reshape(heads, [HEADS * BLOCK // SIZE, SIZE])
    for bit in tl.static_range(MOST_BITS):
        if (1 << bit) < SIZE:
            a, b = tl.split(tl.reshape(x, [HEADS * BLOCK // SIZE, SIZE // 2, 2]))
            x = tl.permute(tl.join(a + b, a - b), (0, 2, 1))
            x = tl.reshape(x, [HEADS * BLOCK // SIZE, SIZE])
    return tl.reshape(x, [HEADS, BLOCK]) * (SIZE**-0.5)


def transform_size(head_dim: int) -> int:
    """How many neighbours of a head are transformed together."""
    return head_dim & -head_dim
