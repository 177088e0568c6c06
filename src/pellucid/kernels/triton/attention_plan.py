"""How a step's attention is cut into tiles, once for all layers, and the launch of its kernels.

A tile has 16 rows, the fewest that a tensor core multiplies, for decoding and for chunks alike. A
taller one would read the keys of a long chunk less often; but another height may be multiplied by
other instructions, and a token would then depend on whether it was decoded or recomputed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from pellucid.kernels.interface import ATTENTION_WORKSPACE, AttentionInputs, KVLayer
from pellucid.kernels.triton.attention import PARTITION, attention_kernel, merge_kernel
from pellucid.kernels.triton.dtypes import product_dtype
from pellucid.kernels.triton.hadamard import transform_size

TILE_ROWS = 16


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles that are computed the same way.

    `table` [tiles, 4] int32 holds of each its sequence, its first row of the step, the position of
    that row, and its number of tokens. `parts` is the most partitions that one of them meets, for
    each sliding window.
    """

    table: Tensor
    parts: dict[int | None, int]
    split: bool  # each partition is a program of its own

    @property
    def count(self) -> int:
        return len(self.table)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the layers of a step share."""

    groups: list[Tiles]
    rows: int  # of a tile, padding included


Tile = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Heads:
    """How many there are, and their size."""

    query: int
    kv: int
    dim: int

    @property
    def rows(self) -> int:
        """Of a tile, padding included."""
        return max(TILE_ROWS, triton.next_power_of_2(self.query // self.kv))

    @property
    def block_dim(self) -> int:
        """Columns of a tile."""
        return max(16, triton.next_power_of_2(self.dim))

    def most_tiles(self, parts: int) -> int:
        """Of so many partitions each, whose partial results fit into the workspace; 1 at least."""
        part_bytes = self.kv * self.rows * (self.block_dim + 2) * torch.float32.itemsize
        return max(1, ATTENTION_WORKSPACE // (parts * part_bytes))


def plan(inputs: AttentionInputs, heads: Heads, windows: Sequence[int | None]) -> Plan:
    """See `ReferenceOps.plan_attention`. Contexts that one tile of the step meets are split."""
    height = heads.rows // (heads.query // heads.kv)  # tokens
    single: list[Tile] = []
    several: list[Tile] = []
    row = 0
    lengths = zip(inputs.query_lens_list, inputs.seq_lens_list, strict=True)
    for sequence, (count, context) in enumerate(lengths):
        tiles = []
        position = context - count
        while position < context:
            taken = min(height - position % height, context - position)
            tiles.append((sequence, row, position, taken))
            position, row = position + taken, row + taken
        (single if len(tiles) == 1 else several).extend(tiles)
    groups = [(group, True) for group in _cut(single, heads, windows)]
    if several:
        groups.append((several, False))
    device = inputs.positions.device
    pinned = device.type == "cuda"  # or the host would wait
    return Plan(
        [
            Tiles(
                torch.tensor(tiles, dtype=torch.int32, device="cpu", pin_memory=pinned).to(
                    device, non_blocking=True
                ),
                {window: _most_partitions(tiles, window) for window in set(windows)},
                split,
            )
            for tiles, split in groups
        ],
        heads.rows,
    )


def _cut(tiles: list[Tile], heads: Heads, windows: Sequence[int | None]) -> Iterator[list[Tile]]:
    """Tiles to be computed together: as many as have room, those of like contexts.

    Each tile of a launch takes room for as many partitions as the longest of them has.
    """
    rest = sorted(tiles, key=lambda tile: -tile[2])
    while rest:
        parts = max(_most_partitions(rest[:1], window) for window in set(windows))
        count = heads.most_tiles(parts)
        yield rest[:count]
        rest = rest[count:]


def _most_partitions(tiles: list[Tile], window: int | None) -> int:
    counts = []
    for _, _, position, tokens in tiles:
        lowest = 0 if window is None else max(0, position - window + 1)
        counts.append((position + tokens - 1) // PARTITION.value - lowest // PARTITION.value + 1)
    return max(counts)


def attend(
    q: Tensor,
    kv: KVLayer,
    inputs: AttentionInputs,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """See `ReferenceOps.paged_attention`.

    Raises:
        ValueError: `inputs.plan` is not what `plan` returned.
    """
    if not isinstance(inputs.plan, Plan):
        raise ValueError("paged_attention needs what plan_attention returned in inputs.plan")
    q = q.contiguous()
    out = torch.empty_like(q)
    for tiles in inputs.plan.groups:
        _attend_tiles(q, out, kv, inputs, tiles, inputs.plan.rows, scale, window, softcap)
    return out


def _attend_tiles(
    q: Tensor,
    out: Tensor,
    kv: KVLayer,
    inputs: AttentionInputs,
    tiles: Tiles,
    rows: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> None:
    _, num_heads, head_dim = q.shape
    block_size, num_kv_heads = kv.k.shape[1:3]
    shared = num_heads // num_kv_heads
    block_dim = Heads(num_heads, num_kv_heads, head_dim).block_dim
    # With one partition there is nothing to merge, and both ways are the same.
    parts = tiles.parts[window] if tiles.split else 1
    split = parts > 1
    items = tiles.count * parts * num_kv_heads * rows if split else 0
    part_m, part_total = torch.empty((2, items), dtype=torch.float32, device=q.device)
    part_out = torch.empty((items, block_dim), dtype=torch.float32, device=q.device)
    width = 0 if window is None else window
    int8 = 0 if kv.k_scale is None else transform_size(head_dim)
    attention_kernel[(tiles.count, num_kv_heads, parts)](
        *(q, out, part_m, part_total, part_out),
        *(kv.k, kv.v, kv.k_scale, kv.v_scale, tiles.table),
        *(inputs.block_tables, inputs.block_tables.shape[1], parts),
        *(num_kv_heads, shared, head_dim, block_size, scale, softcap or 0.0, width),
        ROWS=rows,
        BLOCK_DIM=block_dim,
        DTYPE=product_dtype(q.dtype),
        INT8=int8,
        WINDOW=window is not None,
        SOFTCAP=softcap is not None,
        SPLIT=split,
    )
    if split:
        merge_kernel[(tiles.count, num_kv_heads)](
            *(out, part_m, part_total, part_out, tiles.table),
            *(parts, num_kv_heads, shared, head_dim, width),
            ROWS=rows,
            BLOCK_DIM=block_dim,
            INT8=int8,
            WINDOW=window is not None,
        )
