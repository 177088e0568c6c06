"""Paged attention in plain torch, whose bits do not depend on how the work was cut.

A chunk's query tokens are cut into tiles; a sequence's context is cut into partitions of 256
positions, always counted from position 0:

                positions   0 ........ 255 | 256 ...... 511 | 512 ...
      tile of queries       partition 0    | partition 1    |

All tiles of the step meet their first partition at once, then their second, and so on. Each meeting
is an ordinary softmax over 256 scores; its result is merged into the tile's running one (online
softmax, Milakov and Gimelshein 2018), always in the order of positions. A masked score becomes
-1e30, so its weight is exactly 0, and a partition that is masked altogether merges with weight
exactly 0: it does not matter that a neighbour in the tile needed it. Every product has a fixed
shape, and in it a row's result does not depend on the other rows.

Slots beyond what a tile may see are never read (the nearest visible slot stands in for them), so
whatever they hold, NaN included, cannot leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, KVLayer

PARTITION = 256  # positions
LONG_TILE = 32  # query tokens of a tile cut from a chunk
MASKED = -1e30  # absorbs any score; finite, so that no inf - inf can arise


@dataclass(frozen=True, slots=True)
class Tile:
    """Consecutive query tokens of one sequence."""

    sequence: int
    first_row: int  # of the step
    first_position: int
    num_tokens: int

    @property
    def last_position(self) -> int:
        return self.first_position + self.num_tokens - 1

    def lowest_key(self, window: int | None) -> int:
        """The first position that one of the tile's tokens sees."""
        return 0 if window is None else max(0, self.first_position - window + 1)

    def partitions(self, window: int | None) -> range:
        """The partitions that hold a key which one of the tile's tokens sees."""
        return range(self.lowest_key(window) // PARTITION, self.last_position // PARTITION + 1)


@dataclass(frozen=True, slots=True)
class Meeting:
    """The first `num_tiles` tiles of a group, each with its next partition."""

    num_tiles: int
    kv_rows: Tensor  # [num_tiles * G * PARTITION] rows of the pool seen as [slots * G, D]
    mask: Tensor  # [num_tiles, 1, height, 1, PARTITION] float32, 0 or MASKED


@dataclass(frozen=True, slots=True)
class TileGroup:
    """Tiles of one height (query tokens, padded), those with the most partitions first."""

    height: int
    rows: Tensor  # [tiles * height] rows of the step; a padding row repeats the tile's last
    meetings: list[Meeting]


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """The work of one step under one sliding window."""

    groups: list[TileGroup]
    where: Tensor  # [T] each row's place among the rows of all groups


Plan = dict[int | None, WindowPlan]


def plan(
    inputs: AttentionInputs, kv: KVLayer, num_heads: int, windows: Sequence[int | None]
) -> Plan:
    """Cut the step into tiles and look up every slot that they read, once for all layers."""
    _, _, num_kv_heads, head_dim = kv.k.shape
    short = _short_tile(num_heads // num_kv_heads, head_dim)
    tiles = _cut(inputs, short)
    return {window: _plan_window(tiles, inputs, kv, window) for window in set(windows)}


def attend(
    q: Tensor,
    kv: KVLayer,
    inputs: AttentionInputs,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """See `ReferenceOps.paged_attention`."""
    assert isinstance(inputs.plan, dict), "plan_attention comes first"
    work: WindowPlan = inputs.plan[window]
    if not work.groups:
        return torch.empty_like(q)
    outputs = [_attend_group(q, kv, group, scale, softcap) for group in work.groups]
    out = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return out.index_select(0, work.where).to(q.dtype)


def _attend_group(
    q: Tensor, kv: KVLayer, group: TileGroup, scale: float, softcap: float | None
) -> Tensor:
    """The group's tiles -> [tiles * height, H, D] float32."""
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = kv.k.shape[2]
    height, shared = group.height, num_heads // num_kv_heads
    queries = (
        (q.index_select(0, group.rows).float() * scale)
        .view(-1, height, num_kv_heads, shared, head_dim)
        .transpose(1, 2)
        .reshape(-1, height * shared, head_dim)  # one item per tile and key/value head
    )
    out, total = _meet(queries, kv, group.meetings[0], softcap)
    for meeting in group.meetings[1:]:
        items = meeting.num_tiles * num_kv_heads
        part, part_total = _meet(queries[:items], kv, meeting, softcap)
        _merge(out[:items], total[:items], part, part_total)
    return (
        out.view(-1, num_kv_heads, height, shared, head_dim)
        .transpose(1, 2)
        .reshape(-1, num_heads, head_dim)
    )


def _meet(
    queries: Tensor, kv: KVLayer, meeting: Meeting, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Softmax attention over one partition each, and the logarithm of its denominators."""
    items, rows, head_dim = queries.shape
    keys, values = (
        pool.view(-1, head_dim).index_select(0, meeting.kv_rows).view(items, -1, head_dim).float()
        for pool in (kv.k, kv.v)
    )
    scores = torch.bmm(queries, keys.transpose(1, 2))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    tiles, _, height, _, _ = meeting.mask.shape
    scores.view(tiles, -1, height, rows // height, PARTITION).add_(meeting.mask)
    weights = torch.softmax(scores, dim=-1)
    # The largest weight is exp(largest score) / denominator.
    total = scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()
    return torch.bmm(weights, values), total


def _merge(out: Tensor, total: Tensor, part: Tensor, part_total: Tensor) -> None:
    """Fold the softmax of one more partition into `out` and its log-sum `total`, in place."""
    merged = torch.logaddexp(total, part_total)
    out.mul_(torch.exp(total - merged)).add_(part.mul_(torch.exp(part_total - merged)))
    total.copy_(merged)


def _short_tile(shared: int, head_dim: int) -> int:
    """Query tokens of the tile for decoding: as few as keep the bits of the long tile.

    A product of one to three rows takes another kernel, which rounds differently; from four on,
    rows come out the same in a short and in a long tile. Where this machine's library is
    otherwise, decoding uses the long tile too.
    """
    height = 1
    while height * shared < 8 or height * shared % 4:
        height *= 2
    if height >= LONG_TILE or not _same_bits(height * shared, LONG_TILE * shared, head_dim):
        return LONG_TILE
    return height


@cache
def _same_bits(short_rows: int, long_rows: int, head_dim: int) -> bool:
    """Whether the products of `_attend_group` give a row the same bits in both sizes of tile."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(1, long_rows, head_dim, generator=generator)
    keys = torch.randn(1, PARTITION, head_dim, generator=generator)
    weights = torch.softmax(torch.bmm(queries, keys.transpose(1, 2)), dim=-1)
    return all(
        torch.equal(torch.bmm(left[:, :short_rows], right), torch.bmm(left, right)[:, :short_rows])
        for left, right in ((queries, keys.transpose(1, 2)), (weights, keys))
    )


def _cut(inputs: AttentionInputs, short: int) -> dict[int, list[Tile]]:
    """Tiles by height: long ones while more than two short ones are left, then short ones."""
    tiles: dict[int, list[Tile]] = {LONG_TILE: [], short: []}
    row = 0
    for sequence, (count, context) in enumerate(
        zip(inputs.query_lens_list, inputs.seq_lens_list, strict=True)
    ):
        end = row + count
        while row < end:
            height = LONG_TILE if end - row > 2 * short else short
            taken = min(height, end - row)
            tiles[height].append(Tile(sequence, row, context - (end - row), taken))
            row += taken
    return tiles


def _plan_window(
    tiles: dict[int, list[Tile]], inputs: AttentionInputs, kv: KVLayer, window: int | None
) -> WindowPlan:
    groups = []
    where = torch.empty(len(inputs.positions), dtype=torch.int64)
    base = 0
    for height, members in tiles.items():
        if not members:
            continue
        ordered = sorted(members, key=lambda tile: -len(tile.partitions(window)))
        for place, tile in enumerate(ordered):
            start = base + place * height
            rows = slice(tile.first_row, tile.first_row + tile.num_tokens)
            where[rows] = torch.arange(start, start + tile.num_tokens)
        base += len(ordered) * height
        groups.append(_plan_group(height, ordered, inputs, kv, window))
    return WindowPlan(groups, where.to(inputs.positions.device))


def _plan_group(
    height: int, tiles: list[Tile], inputs: AttentionInputs, kv: KVLayer, window: int | None
) -> TileGroup:
    device = inputs.positions.device

    def column(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device).unsqueeze(1)

    offsets = torch.arange(height, device=device)
    offsets = torch.minimum(offsets, column([tile.num_tokens - 1 for tile in tiles]))
    first_row = column([tile.first_row for tile in tiles])
    first = column([tile.first_position for tile in tiles])
    last = column([tile.last_position for tile in tiles])
    lowest = column([tile.lowest_key(window) for tile in tiles])
    sequence = column([tile.sequence for tile in tiles])
    spans = [tile.partitions(window) for tile in tiles]
    meetings = []
    for number in range(len(spans[0])):
        count = sum(number < len(span) for span in spans)
        start = column([span[number] * PARTITION for span in spans[:count]])
        keys = start + torch.arange(PARTITION, device=device)
        readable = torch.minimum(torch.maximum(keys, lowest[:count]), last[:count])
        meetings.append(
            Meeting(
                count,
                _kv_rows(readable, sequence[:count], inputs.block_tables, kv),
                _mask(first[:count] + offsets[:count], keys, window),
            )
        )
    return TileGroup(height, (first_row + offsets).flatten(), meetings)


def _kv_rows(positions: Tensor, sequence: Tensor, block_tables: Tensor, kv: KVLayer) -> Tensor:
    """Where keys and values at `positions` [tiles, PARTITION] of each `sequence` lie."""
    _, block_size, num_kv_heads, _ = kv.k.shape
    blocks = block_tables[sequence, positions // block_size].long()
    slots = blocks * block_size + positions % block_size
    heads = torch.arange(num_kv_heads, device=slots.device).unsqueeze(1)
    return (slots.unsqueeze(1) * num_kv_heads + heads).flatten()


def _mask(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """0 where the query at a position sees the key at a position, else MASKED."""
    distance = queries.unsqueeze(2) - keys.unsqueeze(1)  # [tiles, height, PARTITION]
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    return (hidden.float() * MASKED)[:, None, :, None, :]
