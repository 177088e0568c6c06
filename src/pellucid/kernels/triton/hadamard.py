"""The transform of heads in an int8 KV pool; see `pellucid.kernels.int8_heads`.

As a product with a matrix: the heads of a tile go through tensor cores once per tile, which next to
its keys and values is nothing.
"""

import triton
import triton.language as tl


@triton.jit
def hadamard_matrix(head_dim, BLOCK: tl.constexpr):
    """[BLOCK, BLOCK] float32, BLOCK being a power of two and at least `head_dim`; symmetric.

    Rows and columns of neighbours that are transformed together meet in 1 / sqrt(their number), or
    its negative where an odd number of bits is set in both indices; all others in 0.
    """
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    size = head_dim & -head_dim
    odd = row & column & (size - 1)
    odd ^= odd >> 4
    odd ^= odd >> 2
    odd ^= odd >> 1
    factor = 1 / tl.sqrt(size.to(tl.float32))
    return tl.where((row ^ column) < size, factor * (1 - 2 * (odd & 1)), 0.0)
