"""Products with float weights whose rows do not depend on each other: out = x w^T + bias.

A BLAS chooses its kernel by the number of rows, and with it the order of a sum. Here that order
follows from the shape of the weight alone: columns are cut into parts, 64 columns are added at a
time into a part's own float32 sum, and parts are added in order.

    few rows (one tile)     every part is a program, and a second kernel adds them: a weight of few
                            rows would otherwise keep few multiprocessors busy
    more                    one program walks through all parts of its tile

A tile has 64 rows of x, what one instruction of an H100's tensor cores multiplies (wgmma, m64);
with `tall`, 128 rows by two groups of warps, each of which does as the one would. Programs are as
many as `PROGRAMS` and go through the tiles by turns, neighbours sharing rows of w in the L2.

    read    n k bytes of w once per tile of rows, rows k of x once per tile of outputs
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pellucid.kernels.triton.dtypes import product_dtype

ROWS, TALL_ROWS = 64, 128
OUTPUTS = 128
COLUMNS = 64
ENOUGH = 256  # programs; parts are made until there are as many
FEWEST_COLUMNS = 512  # of a part
PROGRAMS = 528  # at once: a multiple of what a GPU has multiprocessors


@triton.jit
def part_product(
    x_rows,  # [ROWS, 1] pointers
    w_rows,  # [OUTPUTS, 1] pointers
    x_seen,
    w_seen,
    begin,
    end,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The product over columns begin .. end - 1."""
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for start in range(begin, end, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        inside = column < end
        a = tl.load(x_rows + column, mask=x_seen & inside, other=0.0)
        b = tl.load(w_rows + column, mask=w_seen & inside, other=0.0)
        total = tl.dot(a.to(DTYPE), tl.trans(b.to(DTYPE)), acc=total, input_precision="ieee")
    return total


# The number of rows varies by step; it does not say how anything is aligned.
@triton.jit(do_not_specialize=["rows"])
def dense_kernel(
    x,  # [rows, k], rows dense
    w,  # [n, k], rows dense
    bias,  # [n]; not read without BIAS, nor with SPLIT
    out,  # [rows, n], rows dense; with SPLIT float32 [PARTS, rows, n]
    x_stride,
    w_stride,
    out_stride,
    rows,
    n,
    k,
    part_columns,  # a multiple of COLUMNS
    PARTS: tl.constexpr,
    SPLIT: tl.constexpr,
    BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid (PROGRAMS at most)."""
    row_tiles, output_tiles = tl.cdiv(rows, ROWS), tl.cdiv(n, OUTPUTS)
    items = row_tiles * output_tiles
    if SPLIT:
        items *= PARTS
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        tile = item
        if SPLIT:
            tile = item // PARTS
        row = tile % row_tiles * ROWS + tl.arange(0, ROWS)
        output = tile // row_tiles * OUTPUTS + tl.arange(0, OUTPUTS)
        x_seen, w_seen = (row < rows)[:, None], (output < n)[:, None]
        x_rows = x + row.to(tl.int64)[:, None] * x_stride
        w_rows = w + output.to(tl.int64)[:, None] * w_stride
        place = row.to(tl.int64)[:, None] * out_stride + output[None, :]
        seen = x_seen & (output < n)[None, :]
        if SPLIT:
            part = item % PARTS
            begin = part * part_columns
            end = tl.minimum(begin + part_columns, k)
            total = part_product(
                x_rows, w_rows, x_seen, w_seen, begin, end, ROWS, OUTPUTS, COLUMNS, DTYPE
            )
            tl.store(out + part.to(tl.int64) * rows * out_stride + place, total, mask=seen)
        else:
            total = tl.zeros([ROWS, OUTPUTS], tl.float32)
            for part in range(PARTS):
                begin = part * part_columns
                end = tl.minimum(begin + part_columns, k)
                total += part_product(
                    x_rows, w_rows, x_seen, w_seen, begin, end, ROWS, OUTPUTS, COLUMNS, DTYPE
                )
            if BIAS:
                more = tl.load(bias + output, mask=output < n, other=0.0)
                total += more.to(tl.float32)[None, :]
            tl.store(out + place, total.to(out.dtype.element_ty), mask=seen)


@triton.jit(do_not_specialize=["rows"])
def add_parts_kernel(
    parts,  # float32 [PARTS, rows, n]
    bias,
    out,  # [rows, n], rows dense
    out_stride,
    rows,
    n,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows, n / BLOCK)."""
    row = tl.program_id(0).to(tl.int64)
    output = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = output < n
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(PARTS):
        total += tl.load(parts + (part * rows + row) * n + output, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias + output, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + output, total.to(out.dtype.element_ty), mask=inside)


def num_parts(n: int, k: int) -> int:
    """Into how many parts the columns of a weight [n, k] are cut: by its shape alone."""
    wanted = triton.cdiv(ENOUGH, triton.cdiv(n, OUTPUTS))
    return max(1, min(wanted, k // FEWEST_COLUMNS))


def dense_product(
    x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor, tall: bool = False
) -> None:
    """Fill `out` [rows, n], columns of a wider tensor perhaps, from `x` [rows, k] and `w` [n, k].

    Args:
        tall: more rows than 64 go by tiles of 128, on GPUs that give the same bits for it.
    """
    rows, n, k = len(x), *w.shape
    if out.numel() == 0:
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    parts = num_parts(n, k)
    part_columns = triton.cdiv(triton.cdiv(k, parts), COLUMNS) * COLUMNS
    split = parts > 1 and rows <= ROWS
    height = TALL_ROWS if tall and rows > ROWS else ROWS
    tiles = triton.cdiv(rows, height) * triton.cdiv(n, OUTPUTS)
    target = out
    if split:
        target = torch.empty((parts, rows, n), dtype=torch.float32, device=x.device)
    dense_kernel[(min(PROGRAMS, tiles * (parts if split else 1)),)](
        *(x, w, bias, target, x.stride(0), w.stride(0), target.stride(-2)),
        *(rows, n, k, part_columns),
        PARTS=parts,
        SPLIT=split,
        BIAS=bias is not None,
        DTYPE=product_dtype(x.dtype),
        ROWS=height,
        OUTPUTS=OUTPUTS,
        COLUMNS=COLUMNS,
        num_warps=8 if height == TALL_ROWS else 4,
        num_stages=2 if w.dtype == torch.float32 else 3,  # that fit the shared memory
    )
    if split:
        add_parts(target, bias, out)


def add_parts(parts: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Fill `out` [rows, n] with the sum of float32 `parts` [P, rows, n], in order, and `bias`."""
    count, rows, n = parts.shape
    block = 1024
    add_parts_kernel[(rows, triton.cdiv(n, block))](
        *(parts, bias, out, out.stride(0), rows, n),
        PARTS=count,
        BIAS=bias is not None,
        BLOCK=block,
    )
