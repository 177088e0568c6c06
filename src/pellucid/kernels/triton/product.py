"""Products with quantised weights: integers in memory, floats in registers (W8A16, W4A16).

    out[t, i] = sum_c x[t, c] w[i, c] + bias[i]         w = scale * (q - zero) + minimum

with a scale, and a minimum in some formats, for each 16 or 32 columns of a row of w. Nothing is
rounded: what tensor cores multiply are activations and integers up to 256, which 16-bit floats hold
exactly; the sum over the columns that share a scale is multiplied by it in float32.

One program, of one warp, computes 64 rows of w times 16 rows of x, 128 columns at a time, in order:
what a row gives does not depend on how many others there are. A chunk of a prompt may take tiles
of more rows, which widen fewer weights per row; only where the GPU's instructions give the same
bits for both (all of 16, 32 and 64 rows are m16n8k16). With fewer than 16 rows the rest of the tile
is padding, which costs nothing that counts, as the weights have to come from memory all the same:

    read    n k (bits / 8 + bytes of a scale and a minimum / group), once per 16 rows of x

which is 0.56 bytes per weight for 4 bits with float16 scales, against 2 of a bfloat16. Two things
decide whether they come as fast as the memory gives them:

**Parts.** 4.8 TB/s times a latency of some 0.7 us are 3.4 MB, 25 KB of each of an H200's 132
multiprocessors, that must have been asked for at any time. A program has asked for two blocks, of
64 rows by 64 bytes, 8 KB. So each multiprocessor needs four programs at least, and eight for its
four schedulers to have two warps each. A weight [4096, 4096] has but 64 tiles of rows: its columns
are cut into 16 parts, by the shape of the weight alone. Where the result has few tiles each part is
a program that reads two blocks, and a second kernel adds the parts in order; where it has many, one
program walks through all parts of its tile. Both do the same additions.

**Instructions.** 132 multiprocessors start 29e12 lanes' instructions a second (four warps' each at
1.7 GHz), whereas 8.5e12 weights of 4 bits fit into 4.8 TB: 3.4 for each. So weights are the left
operand of the product, whose fragments are made in registers, in the order in which a lane loads
them (`IntegerWeight`). And none is converted: two at a time are cut out of a word into the
mantissas of two 16-bit floats, where they stand for 128 (float16: 1024) and one more per unit; one
packed subtraction leaves q - zero of both. Compiled for sm_90 by Triton 3.9 the loop has 3.3
instructions per weight of 4 bits (by 3.6, 6.5), and 5 per weight of 8 bits, whose share is 6.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pellucid.kernels.triton.dense import add_parts
from pellucid.kernels.triton.dtypes import product_dtype
from pellucid.kernels.triton.weights import BLOCK_K, IntegerWeight

ROWS = 16  # of x
OUTPUTS = 64  # rows of the weight
ENOUGH = 1056  # programs: eight for each multiprocessor of an H200
FEW = ENOUGH // 2  # tiles of the result that leave too many multiprocessors idle
FEWEST_COLUMNS = 256  # of a part
BLOCK = tl.constexpr(BLOCK_K)


@triton.jit
def integers(
    word, excess, PLACE: tl.constexpr, BITS: tl.constexpr, POWER: tl.constexpr, DTYPE: tl.constexpr
):
    """q - zero of two integers in each word: [OUTPUTS, W] int32 to [OUTPUTS, 2 W].

    They lie at bits BITS x PLACE and BITS x PLACE + 16. For POWER and excess, see `mantissas`. All
    numbers here are whole, and their type holds them.
    """
    pair = (word >> (BITS * PLACE)) & (0x00010001 * ((1 << BITS) - 1)) | (0x00010001 * POWER)
    both = tl.join(pair.to(tl.int16), (pair >> 16).to(tl.int16))
    both = tl.reshape(both, [word.shape[0], 2 * word.shape[1]])
    if POWER:
        return both.to(DTYPE, bitcast=True) - tl.full([], excess, DTYPE)
    wide = (both.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True)  # 2 ** 23 + q
    return (wide - excess).to(DTYPE)


def mantissas(dtype: tl.dtype, bits: int) -> tuple[int, float]:
    """Bits of a power of two into whose mantissa an integer fits, one per unit; and that power.

    The bits are 0 if no power will do in the 16 bits of `dtype`: then it is float32's 2 ** 23.
    """
    if dtype == tl.float16:
        return 0x6400, 1024.0
    return (0x4300, 128.0) if dtype == tl.bfloat16 and bits < 8 else (0, 2.0**23)


@triton.jit
def with_group(
    total,  # [OUTPUTS, ROWS]
    x_rows,  # [1, ROWS] pointers
    w,  # [OUTPUTS, GROUP] in DTYPE
    scale_rows,  # [OUTPUTS] pointers
    minimum_rows,
    start,
    x_seen,
    k,
    GROUP: tl.constexpr,
    DTYPE: tl.constexpr,
    MINIMA: tl.constexpr,
):
    """`total` plus the product over the columns of one scale. Roundings are spelled out."""
    column = (start + tl.arange(0, GROUP))[:, None]
    a = tl.load(x_rows + column, mask=x_seen & (column < k), other=0.0).to(DTYPE)
    part = tl.dot(w, a, input_precision="ieee")
    scale = tl.load(scale_rows + start // GROUP).to(tl.float32)
    total = tl.fma(part, tl.broadcast_to(scale[:, None], part.shape), total)
    if MINIMA:
        minimum = tl.load(minimum_rows + start // GROUP).to(tl.float32)
        row_sum = tl.broadcast_to(tl.sum(a.to(tl.float32), axis=0)[None, :], part.shape)
        total = tl.fma(row_sum, tl.broadcast_to(minimum[:, None], part.shape), total)
    return total


@triton.jit
def part_product(
    x_rows, q_rows, scale_rows, minimum_rows, x_seen, first, last, k, excess,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    DTYPE: tl.constexpr,
    MINIMA: tl.constexpr,
    POWER: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PLACES: tl.constexpr,  # of two integers in a word
    WORDS: tl.constexpr,  # that hold PLACES groups
):  # fmt: skip
    """The product over blocks first .. last - 1 of columns, [OUTPUTS, ROWS]."""
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for block in range(first, last):
        for part in tl.static_range(BLOCK // (PLACES * GROUP)):
            words = block * (BLOCK * BITS // 32) + part * WORDS + tl.arange(0, WORDS)
            word = tl.load(q_rows + words[None, :])
            word = tl.permute(tl.reshape(word, [OUTPUTS, 4, WORDS // 4]), (0, 2, 1))
            word = tl.reshape(word, [OUTPUTS, WORDS])  # in order; see IntegerWeight
            for place in tl.static_range(PLACES):
                w = integers(word, excess, place, BITS, POWER, DTYPE)
                start = block * BLOCK + (part * PLACES + place) * GROUP
                total = with_group(
                    total, x_rows, w, scale_rows, minimum_rows, start, x_seen, k,
                    GROUP, DTYPE, MINIMA,
                )  # fmt: skip
    return total


@triton.jit(do_not_specialize=["rows"])  # which varies by step
def integer_product_kernel(
    x,  # [rows, k], rows dense
    q,  # see IntegerWeight
    scales,  # [n, groups]
    minima,  # [n, groups]; not read without MINIMA
    bias,  # [n]; not read without BIAS, nor with SPLIT
    out,  # [rows, n], rows dense; with SPLIT float32 [PARTS, rows, n]
    x_stride,
    q_stride,
    groups,
    out_stride,
    rows,
    n,
    k,
    blocks,  # of all columns
    part_blocks,
    excess,  # float32: what an integer is too large by in a mantissa
    PARTS: tl.constexpr,
    SPLIT: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    DTYPE: tl.constexpr,  # of products
    MINIMA: tl.constexpr,
    BIAS: tl.constexpr,
    POWER: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """Grid (rows / ROWS, n / OUTPUTS, PARTS with SPLIT, else 1)."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[None, :]
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    x_seen, seen = row < rows, output < n
    held = tl.minimum(output, n - 1).to(tl.int64)  # a row that is not there is computed for nobody
    x_rows = x + row.to(tl.int64) * x_stride
    q_rows = q + held[:, None] * q_stride
    scale_rows = scales + held * groups
    minimum_rows = scale_rows
    if MINIMA:
        minimum_rows = minima + held * groups

    place = out + row.to(tl.int64) * out_stride + output[:, None]
    if SPLIT:
        first = tl.program_id(2) * part_blocks
        total = part_product(
            x_rows, q_rows, scale_rows, minimum_rows, x_seen,
            first, tl.minimum(first + part_blocks, blocks), k, excess,
            BITS, GROUP, DTYPE, MINIMA, POWER, ROWS, OUTPUTS, 16 // BITS, GROUP // 2,
        )  # fmt: skip
        place += tl.program_id(2).to(tl.int64) * rows * out_stride
    else:
        total = tl.zeros([OUTPUTS, ROWS], tl.float32)
        for part in range(PARTS):
            first = part * part_blocks
            total += part_product(
                x_rows, q_rows, scale_rows, minimum_rows, x_seen,
                first, tl.minimum(first + part_blocks, blocks), k, excess,
                BITS, GROUP, DTYPE, MINIMA, POWER, ROWS, OUTPUTS, 16 // BITS, GROUP // 2,
            )  # fmt: skip
        if BIAS:
            total += tl.load(bias + output, mask=seen, other=0.0).to(tl.float32)[:, None]
    tl.store(place, total.to(out.dtype.element_ty), mask=x_seen & seen[:, None])


def num_parts(n: int, k: int) -> int:
    """Into how many parts the columns of a weight [n, k] are cut: by its shape alone."""
    wanted = triton.cdiv(ENOUGH, triton.cdiv(n, OUTPUTS))
    return max(1, min(wanted, k // FEWEST_COLUMNS))


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
    blocks = triton.cdiv(weight.k, BLOCK_K)
    part_blocks = triton.cdiv(blocks, num_parts(n, weight.k))
    parts = triton.cdiv(blocks, part_blocks)
    height = tile_rows if rows > ROWS else ROWS
    row_tiles, output_tiles = triton.cdiv(rows, height), triton.cdiv(n, OUTPUTS)
    split = parts > 1 and row_tiles * output_tiles < FEW
    target = out
    if split:
        target = x.new_empty((parts, rows, n), dtype=torch.float32)
    dtype = product_dtype(x.dtype)
    power, value = mantissas(dtype, weight.bits)
    grid = row_tiles, output_tiles, parts if split else 1
    integer_product_kernel[grid](
        *(x, weight.q, weight.scales, weight.minima, bias, target),
        *(x.stride(0), weight.q.stride(0), weight.scales.shape[1], target.stride(-2)),
        *(rows, n, weight.k, blocks, part_blocks, value + weight.zero),
        PARTS=parts,
        SPLIT=split,
        BITS=weight.bits,
        GROUP=weight.group,
        DTYPE=dtype,
        MINIMA=weight.minima is not None,
        BIAS=bias is not None,
        POWER=power,
        ROWS=height,
        OUTPUTS=OUTPUTS,
        num_warps=1 if height == ROWS else 2,
        num_stages=3,
    )
    if split:
        add_parts(target, bias, out)
