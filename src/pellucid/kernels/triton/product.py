"""Products with quantised weights: integers in memory, floats in registers (W8A16, W4A16).

    out[t, i] = sum_c x[t, c] w[i, c] + bias[i]         w = scale * (q - zero) + minimum

with a scale, and a minimum in some formats, for each 16 or 32 columns of a row of w. One program
computes 16 rows of x times 32 rows of w, 64 columns at a time, in order: what a row gives does not
depend on how many others there are. A chunk of a prompt may take taller tiles, which widen fewer
weights per row; only where the GPU's instructions give the same bits for both (all of 32 rows, and
of 16, are m16n8k16; a tile of 64 is wgmma's m64). With fewer than 16 rows the rest of the tile is
padding, which costs nothing that counts, as the weights have to come from memory all the same:

    read    n k (bits / 8 + bytes of a scale and a minimum / group), once per 16 rows of x

which is 0.56 bytes per weight for 4 bits with float16 scales, against 2 of a bfloat16. Nothing is
rounded: what tensor cores multiply are activations and integers up to 256, which 16-bit floats hold
exactly; the sum over the columns that share a scale is multiplied by it in float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from pellucid.kernels.triton.dtypes import product_dtype
from pellucid.kernels.triton.weights import BLOCK_K, IntegerWeight

ROWS = 16  # of x
OUTPUTS = 32  # rows of the weight
HALF_BLOCK = tl.constexpr(BLOCK_K // 2)


@triton.jit
def with_group(
    total,  # [ROWS, OUTPUTS]
    x,  # [ROWS, 1] pointers to rows
    q,  # [OUTPUTS, GROUP] integers
    scales,  # [OUTPUTS] pointers to rows
    minima,
    start,
    x_seen,
    output_seen,
    k,
    zero,
    GROUP: tl.constexpr,
    DTYPE: tl.constexpr,
    MINIMA: tl.constexpr,
):
    """`total` plus the product over the columns of one scale. Roundings are spelled out."""
    column = start + tl.arange(0, GROUP)
    a = tl.load(x + column[None, :], mask=x_seen & (column < k)[None, :], other=0.0).to(DTYPE)
    w = (q.to(tl.float32) - zero).to(DTYPE)
    part = tl.dot(a, tl.trans(w), input_precision="ieee")
    scale = tl.load(scales + start // GROUP, mask=output_seen, other=0.0).to(tl.float32)
    total = tl.fma(part, tl.broadcast_to(scale[None, :], part.shape), total)
    if MINIMA:
        minimum = tl.load(minima + start // GROUP, mask=output_seen, other=0.0).to(tl.float32)
        row_sum = tl.broadcast_to(tl.sum(a.to(tl.float32), axis=1)[:, None], part.shape)
        total = tl.fma(row_sum, tl.broadcast_to(minimum[None, :], part.shape), total)
    return total


@triton.jit(do_not_specialize=["rows"])  # which varies by step
def integer_product_kernel(
    x,  # [rows, k], rows dense
    q,  # [n, padded k], or with 4 bits [n, padded k / 2], uint8
    scales,  # [n, groups]
    minima,  # [n, groups]; not read without MINIMA
    bias,  # [n]; not read without BIAS
    out,  # [rows, n], rows dense
    x_stride,
    q_stride,
    groups,
    out_stride,
    rows,
    n,
    k,
    zero,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    DTYPE: tl.constexpr,  # of products
    MINIMA: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """Grid (n / OUTPUTS, rows / ROWS)."""
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x_seen, output_seen = (row < rows)[:, None], output < n
    wide_output = output.to(tl.int64)
    x_row = x + row.to(tl.int64)[:, None] * x_stride
    q_row = q + wide_output[:, None] * q_stride
    scale_row = scales + wide_output * groups
    minimum_row = scale_row
    if MINIMA:
        minimum_row = minima + wide_output * groups

    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for start in range(0, k, 2 * HALF_BLOCK):
        if BITS == 4:  # which come in groups of HALF_BLOCK
            lane = start // 2 + tl.arange(0, HALF_BLOCK)
            both = tl.load(q_row + lane[None, :], mask=output_seen[:, None], other=0)
            total = with_group(
                total, x_row, both & 15, scale_row, minimum_row, start,
                x_seen, output_seen, k, zero, GROUP, DTYPE, MINIMA,
            )  # fmt: skip
            total = with_group(
                total, x_row, both >> 4, scale_row, minimum_row, start + HALF_BLOCK,
                x_seen, output_seen, k, zero, GROUP, DTYPE, MINIMA,
            )  # fmt: skip
        else:
            for offset in tl.static_range(0, 2 * HALF_BLOCK, GROUP):
                lane = start + offset + tl.arange(0, GROUP)
                own = tl.load(q_row + lane[None, :], mask=output_seen[:, None], other=0)
                total = with_group(
                    total, x_row, own, scale_row, minimum_row, start + offset,
                    x_seen, output_seen, k, zero, GROUP, DTYPE, MINIMA,
                )  # fmt: skip
    if BIAS:
        total += tl.load(bias + output, mask=output_seen, other=0.0).to(tl.float32)[None, :]
    place = out + row.to(tl.int64)[:, None] * out_stride + output[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=x_seen & output_seen[None, :])


def integer_product(
    x: Tensor, weight: IntegerWeight, bias: Tensor | None, out: Tensor, tile_rows: int = ROWS
) -> None:
    """Fill `out` [rows, n], columns of a wider tensor perhaps, from `x` [rows, k].

    Args:
        tile_rows: height of the tiles where there are more rows than 16.
    """
    rows, n = out.shape
    if out.numel() == 0:
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    height = tile_rows if rows > ROWS else ROWS
    integer_product_kernel[(triton.cdiv(n, OUTPUTS), triton.cdiv(rows, height))](
        *(x, weight.q, weight.scales, weight.minima, bias, out),
        *(x.stride(0), weight.q.stride(0), weight.scales.shape[1], out.stride(0)),
        *(rows, n, weight.k, weight.zero),
        BITS=weight.bits,
        GROUP=weight.group,
        DTYPE=product_dtype(x.dtype),
        MINIMA=weight.minima is not None,
        BIAS=bias is not None,
        ROWS=height,
        OUTPUTS=OUTPUTS,
    )
