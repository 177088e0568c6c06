"""How the reference cuts a step's attention into pieces, once for all layers.

The step's query tokens are cut into tiles of consecutive tokens of one sequence; a sequence's
context is cut into partitions of 256 positions, always counted from position 0:

                positions   0 ........ 255 | 256 ...... 511 | 512 ...
      tile of queries        partition 0   |  partition 1   |

All tiles of one height meet their first partition at once, then their second, and so on. A slot
that a tile may not see is never read: the nearest one that it sees stands in for it, so whatever
lies in unused slots, NaN included, cannot leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, KVLayer, most_partitions

PARTITION = 256  # positions
LONG_TILE = 32  # query tokens of a tile cut from a chunk; a decoding sequence has a tile of 1
FEWEST = 8  # the last tokens of a chunk get tiles of 1, unless they are more than this
ROW_MULTIPLE = 4  # rows of a product; see `reference_attention`
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

    def sees_all(self, partition: int, window: int | None) -> bool:
        """Whether each of the tile's tokens sees the whole partition."""
        first_key = partition * PARTITION
        return first_key + PARTITION - 1 <= self.first_position and (
            window is None or self.last_position - first_key < window
        )


@dataclass(frozen=True, slots=True)
class Meeting:
    """The first `num_tiles` tiles of a group, each with its next partition."""

    num_tiles: int
    kv_rows: Tensor  # [num_tiles * G * PARTITION] rows of the pool seen as [slots * G, D]
    mask: Tensor | None  # [num_tiles, 1, rows, PARTITION], 0 or MASKED; None if all is seen


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


@dataclass(frozen=True, slots=True)
class Planner:
    """Builds the plans of one step. `shared` is the number of query heads per key/value head."""

    inputs: AttentionInputs
    kv: KVLayer
    shared: int
    decode_height: int

    def plan(self, windows: Sequence[int | None]) -> dict[int | None, WindowPlan]:
        """The work under each of `windows`."""
        if self.inputs.context_limit:
            return {window: self._unseen(window) for window in set(windows)}
        tiles = self._cut()
        return {window: self._window(tiles, window) for window in set(windows)}

    def _unseen(self, window: int | None) -> WindowPlan:
        """The work of a step of single tokens that may be replayed with other numbers.

        Every tile meets as many partitions as there can be; those that it has not are masked.
        """
        limit, height = self.inputs.context_limit, self.decode_height
        position = self.inputs.positions.unsqueeze(1)
        device = position.device
        sequence = torch.arange(len(position), device=device)
        lowest = torch.zeros_like(position)
        if window is not None:
            lowest = (position - (window - 1)).clamp_min(0)
        first_key = lowest // PARTITION * PARTITION + torch.arange(PARTITION, device=device)
        meetings = []
        for number in range(most_partitions(limit, window, PARTITION)):
            keys = first_key + number * PARTITION
            seen = torch.minimum(torch.maximum(keys, lowest), position)
            kv_rows = self._kv_rows(seen, sequence.unsqueeze(1))
            mask = self._mask(position.expand(-1, height), keys, window)
            meetings.append(Meeting(len(position), kv_rows, mask))
        rows = sequence.repeat_interleave(height)
        return WindowPlan([TileGroup(height, rows, meetings)], sequence * height)

    def _cut(self) -> list[list[Tile]]:
        """Decoding tiles and long tiles."""
        short: list[Tile] = []
        long: list[Tile] = []
        row = 0
        lengths = zip(self.inputs.query_lens_list, self.inputs.seq_lens_list, strict=True)
        for sequence, (count, context) in enumerate(lengths):
            end = row + count
            while row < end:
                is_long = end - row > FEWEST
                taken = min(LONG_TILE if is_long else self.decode_height, end - row)
                tile = Tile(sequence, row, context - (end - row), taken)
                (long if is_long else short).append(tile)
                row += taken
        return [short, long]

    def _window(self, tiles: list[list[Tile]], window: int | None) -> WindowPlan:
        groups = []
        where = [0] * len(self.inputs.positions)
        base = 0
        for height, members in zip((self.decode_height, LONG_TILE), tiles, strict=True):
            if not members:
                continue
            ordered = sorted(members, key=lambda tile: -len(tile.partitions(window)))
            for tile in ordered:
                end = tile.first_row + tile.num_tokens
                where[tile.first_row : end] = range(base, base + tile.num_tokens)
                base += height
            groups.append(self._group(height, ordered, window))
        return WindowPlan(groups, self._tensor(where))

    def _group(self, height: int, tiles: list[Tile], window: int | None) -> TileGroup:
        offsets = torch.minimum(
            torch.arange(height, device=self.inputs.positions.device),
            self._column([tile.num_tokens - 1 for tile in tiles]),
        )
        spans = [tile.partitions(window) for tile in tiles]
        meetings = []
        for number in range(len(spans[0])):
            partitions = [span[number] for span in spans if number < len(span)]
            meetings.append(self._meeting(tiles, partitions, offsets, window))
        rows = self._column([tile.first_row for tile in tiles]) + offsets
        return TileGroup(height, rows.flatten(), meetings)

    def _meeting(
        self, tiles: list[Tile], partitions: list[int], offsets: Tensor, window: int | None
    ) -> Meeting:
        """Tile i meets partitions[i]; `offsets` [tiles, height] are its tokens."""
        tiles = tiles[: len(partitions)]
        within = torch.arange(PARTITION, device=offsets.device)
        keys = self._column(partitions) * PARTITION + within
        lowest = self._column([tile.lowest_key(window) for tile in tiles])
        highest = self._column([tile.last_position for tile in tiles])
        sequence = self._column([tile.sequence for tile in tiles])
        kv_rows = self._kv_rows(torch.minimum(torch.maximum(keys, lowest), highest), sequence)
        if all(tile.sees_all(p, window) for tile, p in zip(tiles, partitions, strict=True)):
            return Meeting(len(tiles), kv_rows, None)
        queries = self._column([tile.first_position for tile in tiles]) + offsets[: len(tiles)]
        return Meeting(len(tiles), kv_rows, self._mask(queries, keys, window))

    def _kv_rows(self, positions: Tensor, sequence: Tensor) -> Tensor:
        """Where keys and values at `positions` [tiles, PARTITION] of each `sequence` lie."""
        block_size, num_kv_heads = self.kv.k.shape[1:3]
        blocks = self.inputs.block_tables[sequence, positions // block_size].long()
        slots = blocks * block_size + positions % block_size
        heads = torch.arange(num_kv_heads, device=slots.device).unsqueeze(1)
        return (slots.unsqueeze(1) * num_kv_heads + heads).flatten()

    def _mask(self, queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
        """0 where the query at a position sees the key at a position, else MASKED."""
        distance = queries.unsqueeze(2) - keys.unsqueeze(1)  # [tiles, height, PARTITION]
        hidden = distance < 0
        if window is not None:
            hidden |= distance >= window
        mask = (hidden.float() * MASKED).repeat_interleave(self.shared, dim=1)
        return F.pad(mask, (0, 0, 0, -mask.shape[1] % ROW_MULTIPLE)).unsqueeze(1)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        device = self.inputs.positions.device
        pinned = device.type == "cuda"  # or the host would wait for all that was launched before
        tensor = torch.tensor(values, dtype=torch.int64, device="cpu", pin_memory=pinned)
        return tensor.to(device, non_blocking=True)

    def _column(self, values: Sequence[int]) -> Tensor:
        return self._tensor(values).unsqueeze(1)
