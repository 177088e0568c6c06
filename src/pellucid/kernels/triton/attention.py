"""Causal attention over the paged KV pool: decoding, chunks of prompts, and any mixture.

For a query at position p, over the keys and values at positions j that it sees:

    score_j = cap * tanh(scale q k_j / cap)         max(0, p - window + 1) <= j <= p
    out     = sum_j e^(score_j - m) v_j / sum_j e^(score_j - m),            m = max_j score_j

The step's tokens are cut into tiles of consecutive tokens of one sequence; the rows of a tile are
its tokens' query heads that share one key/value head (GQA), so that each key is read once for all
of them. Tiles begin at multiples of their height, whatever part of one the step has: a token has
the same place in its tile always. A context is cut into partitions of 256 positions:

                positions   0 ........ 255 | 256 ...... 511 | 512 ...
      tile of queries        partition 0   |  partition 1   |

Each partition has its own (m, sum, weighted values), found 64 positions at a time by online softmax
(Milakov and Gimelshein 2018); partitions are merged in order. Where there are few tiles, each
partition is a program of its own and a second kernel merges (split KV, "flash decoding", Dao et al.
2023). Where a tile is part of a long chunk, one program walks through all of its partitions. Both
do the same operations in the same order, so that neither the split nor how a prompt was cut shows.

A score that is masked is -1e30. A row that sees nothing of a block gets a meaningless sum there,
which the first real score multiplies by e^-1e30 = 0: it does not matter that a neighbour in the
tile needed the block. A slot that no row of the tile sees is never read.

Memory traffic: a tile reads its queries, and the keys and values from its first visible position to
its last, once. With b bytes per component that is 2 D b per position and key/value head, all that
matters when decoding: 4 operations per query head and component against b bytes. Split KV also
writes and reads (D + 2) float32 per row and partition, 1/64 of that for 4 heads in bfloat16.
"""

import triton
import triton.language as tl

from pellucid.kernels.triton.hadamard import hadamard

PARTITION = tl.constexpr(256)
BLOCK = tl.constexpr(64)  # positions at a time; divides PARTITION
MASKED = tl.constexpr(-1e30)
TILE_FIELDS = tl.constexpr(4)


@triton.jit
def nothing_seen(ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Largest score, sum of weights and weighted sum of values, of no positions."""
    m = tl.full([ROWS], MASKED, tl.float32)
    return m, tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, BLOCK_DIM], tl.float32)


@triton.jit
def merged(m, total, out, part_m, part_total, part_out):
    """Two softmax sums as one. The roundings are spelled out: both kernels must have the same."""
    top = tl.maximum(m, part_m)
    share, part_share = tl.exp(m - top), tl.exp(part_m - top)
    total = tl.fma(total, share, part_total * part_share)
    out = tl.fma(out, tl.broadcast_to(share[:, None], out.shape), part_out * part_share[:, None])
    return top, total, out


@triton.jit
def load_heads(
    pool, scales, place, seen, column, head_dim, DTYPE: tl.constexpr, INT8: tl.constexpr
):
    """Heads of the pool at `place` [BLOCK] -> [BLOCK, BLOCK_DIM] in DTYPE; INT8: transformed."""
    mask = seen[:, None] & (column < head_dim)[None, :]
    rows = tl.load(pool + place[:, None] * head_dim + column[None, :], mask=mask, other=0)
    if INT8:
        scale = tl.load(scales + place, mask=seen, other=0.0)
        rows = rows.to(tl.float32) * scale[:, None]
    return rows.to(DTYPE)


@triton.jit
def store_rows(
    out,
    places,
    mask,
    total,
    values,
    ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    INT8: tl.constexpr,
):
    """Store weighted sums of values, divided by the sums of their weights."""
    result = values / total[:, None]
    if INT8:
        result = hadamard(result, INT8, ROWS, BLOCK_DIM)
    tl.store(out + places, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def attend_partition(
    queries,  # [ROWS, BLOCK_DIM]
    row_position,  # [ROWS]
    partition,
    span,  # the first position that a row of the tile sees, and the last
    cache,  # the sequence's row of the block table; pools of keys, of values, and their scales
    kv_head,
    sizes,  # num_kv_heads, head_dim, block_size
    how,  # scale, softcap, window
    ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    DTYPE: tl.constexpr,
    INT8: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """Largest score, sum of weights and weighted sum of values of each row, over one partition."""
    lowest, last = span
    table, k_pool, v_pool, k_scales, v_scales = cache
    num_kv_heads, head_dim, block_size = sizes
    scale, softcap, window = how
    column = tl.arange(0, BLOCK_DIM)
    m, total, out = nothing_seen(ROWS, BLOCK_DIM)
    # What lies outside of these bounds is masked for every row, and would change nothing.
    begin = tl.maximum(partition * PARTITION, lowest // BLOCK * BLOCK)
    end = tl.minimum(partition * PARTITION + PARTITION, last + 1)
    for start in range(begin, end, BLOCK):
        position = start + tl.arange(0, BLOCK)
        seen = (position >= lowest) & (position <= last)
        block = tl.load(table + position // block_size, mask=seen, other=0).to(tl.int64)
        place = (block * block_size + position % block_size) * num_kv_heads + kv_head
        keys = load_heads(k_pool, k_scales, place, seen, column, head_dim, DTYPE, INT8)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        if SOFTCAP:
            scores = softcap * (1 - 2 / (tl.exp(2 * (scores / softcap)) + 1))  # tanh
        distance = row_position[:, None] - position[None, :]
        visible = distance >= 0
        if WINDOW:
            visible &= distance < window
        scores = tl.where(visible, scores, MASKED)

        top = tl.maximum(m, tl.max(scores, axis=1))
        weights = tl.exp(scores - top[:, None])
        kept = tl.exp(m - top)
        values = load_heads(v_pool, v_scales, place, seen, column, head_dim, DTYPE, INT8)
        total = tl.fma(total, kept, tl.sum(weights, axis=1))
        out = out * kept[:, None]
        out = tl.dot(weights.to(DTYPE), values, acc=out, input_precision="ieee")
        m = top
    return m, total, out


@triton.jit
def tile_of(tiles, index):
    """(sequence, first row of the step, first position, number of tokens)."""
    tile = tiles + index * TILE_FIELDS
    return tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)


@triton.jit
def rows_of_tile(
    tile,  # as `tile_of` gives it
    row,
    column,
    kv_head,
    num_kv_heads,
    shared,
    head_dim,
    ROWS: tl.constexpr,
):
    """Of each row its token, counted from the tile's first; its components' places; the mask."""
    _, first_row, first_position, tokens = tile
    token = row // shared - first_position % (ROWS // shared)
    head = kv_head * shared + row % shared
    place = (first_row + token).to(tl.int64) * (num_kv_heads * shared) + head
    mask = ((token >= 0) & (token < tokens))[:, None] & (column < head_dim)[None, :]
    return token, place[:, None] * head_dim + column[None, :], mask


@triton.jit
def first_seen(first_position, window, WINDOW: tl.constexpr):
    lowest = first_position * 0
    if WINDOW:
        lowest = tl.maximum(first_position - window + 1, 0)
    return lowest


@triton.jit
def part_line(index, part, parts, kv_head, num_kv_heads, row, ROWS: tl.constexpr):
    """Where the partial results of a tile's rows lie, over one of its partitions."""
    line = (index.to(tl.int64) * parts + part) * num_kv_heads + kv_head
    return line * ROWS + row


# What varies by step is not specialised on: another number would be compiled for while all wait.
@triton.jit(do_not_specialize=["width", "parts"])
def attention_kernel(
    q,  # [T, H, D] dense
    out,  # [T, H, D] dense; written without SPLIT
    part_m,  # [tiles, parts, G, ROWS] float32; written with SPLIT, as are the next two
    part_total,  # likewise
    part_out,  # [tiles, parts, G, ROWS, BLOCK_DIM] float32
    k_pool,  # [slots, G, D]
    v_pool,
    k_scales,  # [slots, G] float32; not read without INT8
    v_scales,
    tiles,  # [tiles, TILE_FIELDS] int32
    block_tables,  # [S, width] int32
    width,
    parts,  # the most partitions that a tile has
    num_kv_heads,
    shared,  # query heads per key/value head
    head_dim,
    block_size,
    scale,
    softcap,  # not read without SOFTCAP
    window,  # not read without WINDOW
    ROWS: tl.constexpr,  # of a tile: tokens * shared, padded
    BLOCK_DIM: tl.constexpr,  # head_dim, rounded up to a power of two
    DTYPE: tl.constexpr,  # of products
    INT8: tl.constexpr,  # components that are transformed together; 0 without an int8 pool
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Grid (tiles, G, parts with SPLIT, else 1)."""
    index, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tile = tile_of(tiles, index)
    sequence, _, first_position, tokens = tile
    last = first_position + tokens - 1
    lowest = first_seen(first_position, window, WINDOW)

    row, column = tl.arange(0, ROWS), tl.arange(0, BLOCK_DIM)
    token, places, mask = rows_of_tile(
        tile, row, column, kv_head, num_kv_heads, shared, head_dim, ROWS
    )
    queries = tl.load(q + places, mask=mask, other=0.0)
    if INT8:
        queries = hadamard(queries.to(tl.float32), INT8, ROWS, BLOCK_DIM)
    queries = queries.to(DTYPE)
    position = first_position + tl.minimum(tl.maximum(token, 0), tokens - 1)
    table = block_tables + sequence.to(tl.int64) * width

    begin, end = lowest // PARTITION, last // PARTITION + 1
    if SPLIT:  # one of them, if the tile has so many
        begin += part
        end = tl.minimum(begin + 1, end)
    m, total, values = nothing_seen(ROWS, BLOCK_DIM)
    for partition in range(begin, end):
        more_m, more_total, more_values = attend_partition(
            queries, position, partition, (lowest, last),
            (table, k_pool, v_pool, k_scales, v_scales), kv_head,
            (num_kv_heads, head_dim, block_size), (scale, softcap, window),
            ROWS, BLOCK_DIM, DTYPE, INT8, WINDOW, SOFTCAP,
        )  # fmt: skip
        m, total, values = merged(m, total, values, more_m, more_total, more_values)
    if SPLIT:
        if begin < end:
            line = part_line(index, part, parts, kv_head, num_kv_heads, row, ROWS)
            tl.store(part_m + line, m)
            tl.store(part_total + line, total)
            tl.store(part_out + line[:, None] * BLOCK_DIM + column[None, :], values)
    else:
        store_rows(out, places, mask, total, values, ROWS, BLOCK_DIM, INT8)


@triton.jit(do_not_specialize=["parts"])
def merge_kernel(
    out,  # as in attention_kernel, up to head_dim
    part_m,
    part_total,
    part_out,
    tiles,
    parts,
    num_kv_heads,
    shared,
    head_dim,
    window,
    ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    INT8: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Grid (tiles, G)."""
    index, kv_head = tl.program_id(0), tl.program_id(1)
    tile = tile_of(tiles, index)
    _, _, first_position, tokens = tile
    last = first_position + tokens - 1
    lowest = first_seen(first_position, window, WINDOW)
    row, column = tl.arange(0, ROWS), tl.arange(0, BLOCK_DIM)
    m, total, values = nothing_seen(ROWS, BLOCK_DIM)
    for part in range(last // PARTITION - lowest // PARTITION + 1):
        line = part_line(index, part, parts, kv_head, num_kv_heads, row, ROWS)
        more_m = tl.load(part_m + line)
        more_total = tl.load(part_total + line)
        more_values = tl.load(part_out + line[:, None] * BLOCK_DIM + column[None, :])
        m, total, values = merged(m, total, values, more_m, more_total, more_values)

    _, places, mask = rows_of_tile(tile, row, column, kv_head, num_kv_heads, shared, head_dim, ROWS)
    store_rows(out, places, mask, total, values, ROWS, BLOCK_DIM, INT8)
