"""Paged attention in plain torch, whose bits do not depend on how the work was cut.

`reference_plan` cuts the step into tiles of queries and partitions of keys. Where a tile meets a
partition there is an ordinary softmax over 256 scores; its result is merged into the tile's running
one (online softmax, Milakov and Gimelshein 2018), always in the order of positions. A masked score
becomes -1e30, so its weight is exactly 0, and a partition that is masked altogether merges with
weight exactly 0: it does not matter that a neighbour in the tile needed it.

Every product has one of two fixed shapes, for decoding and for chunks, in which a row's result does
not depend on the other rows. Both must give the same bits. Products of fewer than four rows take
kernels that round otherwise, so rows are padded to a multiple of four; and `decode_height` looks
whether this machine's library then agrees with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.kernels.int8_heads import widen_heads
from pellucid.kernels.interface import AttentionInputs, KVLayer
from pellucid.kernels.reference_plan import (
    LONG_TILE,
    PARTITION,
    ROW_MULTIPLE,
    Meeting,
    Planner,
    TileGroup,
    WindowPlan,
)


class Gathered:
    """Room for the keys and values of one meeting, kept through the step.

    Fresh memory of this size would be returned to the system and faulted in again in every layer.
    """

    def __init__(self, kv: KVLayer, rows: int) -> None:
        shape, device = (rows, kv.k.shape[3]), kv.k.device
        self._keys = torch.empty(shape, dtype=torch.float32, device=device)
        self._values = torch.empty(shape, dtype=torch.float32, device=device)
        self._stored: Tensor | None = None
        if kv.k.dtype != torch.float32:
            self._stored = torch.empty(shape, dtype=kv.k.dtype, device=device)

    def read(self, kv: KVLayer, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at `rows` of the pools: [items, PARTITION, D] float32 each."""
        keys = self._read(kv.k, kv.k_scale, rows, self._keys)
        return keys, self._read(kv.v, kv.v_scale, rows, self._values)

    def _read(self, pool: Tensor, scales: Tensor | None, rows: Tensor, room: Tensor) -> Tensor:
        head_dim = pool.shape[3]
        flat, out = pool.view(-1, head_dim), room[: len(rows)]
        if self._stored is None:
            torch.index_select(flat, 0, rows, out=out)
        else:
            out.copy_(torch.index_select(flat, 0, rows, out=self._stored[: len(rows)]))
        if scales is not None:
            out.copy_(widen_heads(out, scales.flatten().index_select(0, rows)))
        return out.view(-1, PARTITION, head_dim)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the layers of a step share."""

    windows: dict[int | None, WindowPlan]
    gathered: Gathered


def plan(
    inputs: AttentionInputs, kv: KVLayer, num_heads: int, windows: Sequence[int | None]
) -> Plan:
    """See `ReferenceOps.plan_attention`."""
    shared = num_heads // kv.k.shape[2]
    planner = Planner(inputs, kv, shared, decode_height(shared, kv.k.shape[3]))
    plans = planner.plan(windows)
    rows = [
        len(meeting.kv_rows)
        for window in plans.values()
        for group in window.groups
        for meeting in group.meetings
    ]
    return Plan(plans, Gathered(kv, max(rows, default=0)))


def attend(
    q: Tensor,
    kv: KVLayer,
    inputs: AttentionInputs,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """See `ReferenceOps.paged_attention`."""
    if not isinstance(inputs.plan, Plan):
        raise ValueError("paged_attention needs what plan_attention returned in inputs.plan")
    work = inputs.plan.windows[window]
    if not work.groups:
        return torch.empty_like(q)
    outputs = [
        _attend_group(q, kv, group, inputs.plan.gathered, scale, softcap) for group in work.groups
    ]
    return torch.cat(outputs).index_select(0, work.where).to(q.dtype)


def _attend_group(
    q: Tensor,
    kv: KVLayer,
    group: TileGroup,
    gathered: Gathered,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """The group's tiles -> [tiles * height, H, D] float32."""
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = kv.k.shape[2]
    height, shared = group.height, num_heads // num_kv_heads
    rows = height * shared
    queries = (
        (q.index_select(0, group.rows).float() * scale)
        .view(-1, height, num_kv_heads, shared, head_dim)
        .transpose(1, 2)
        .reshape(-1, rows, head_dim)  # one item per tile and key/value head
    )
    queries = F.pad(queries, (0, 0, 0, -rows % ROW_MULTIPLE))
    out, total = _meet(queries, kv, group.meetings[0], gathered, softcap)
    for meeting in group.meetings[1:]:
        items = meeting.num_tiles * num_kv_heads
        part, part_total = _meet(queries[:items], kv, meeting, gathered, softcap)
        _merge(out[:items], total[:items], part, part_total)
    return (
        out[:, :rows]
        .view(-1, num_kv_heads, height, shared, head_dim)
        .transpose(1, 2)
        .reshape(-1, num_heads, head_dim)
    )


def _meet(
    queries: Tensor, kv: KVLayer, meeting: Meeting, gathered: Gathered, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Softmax attention over one partition each, and the logarithm of its denominators."""
    items, rows, _ = queries.shape
    keys, values = gathered.read(kv, meeting.kv_rows)
    scores = torch.bmm(queries, keys.transpose(1, 2))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if meeting.mask is not None:
        num_kv_heads = items // meeting.num_tiles
        scores.view(meeting.num_tiles, num_kv_heads, rows, PARTITION).add_(meeting.mask)
    weights = torch.softmax(scores, dim=-1)
    # The largest weight is exp(largest score) / denominator.
    total = scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()
    return torch.bmm(weights, values), total


def _merge(out: Tensor, total: Tensor, part: Tensor, part_total: Tensor) -> None:
    """Fold the softmax over one more partition into `out` and its log-sum `total`, in place.

    `torch.logaddexp` is not used: its last elements are rounded otherwise than the rest.
    """
    top = torch.maximum(total, part_total)
    share, part_share = torch.exp(total - top), torch.exp(part_total - top)
    sum_of_shares = share + part_share
    out.mul_(share / sum_of_shares).add_(part.mul_(part_share / sum_of_shares))
    torch.add(top, torch.log(sum_of_shares), out=total)


@cache
def decode_height(shared: int, head_dim: int) -> int:
    """Query tokens of a decoding tile: 1 if that gives the bits of a long tile, else as many.

    Tried out once on numbers of the model's shape.
    """
    generator = torch.Generator().manual_seed(0)
    few, many = (shared * height + -shared * height % ROW_MULTIPLE for height in (1, LONG_TILE))
    queries = torch.randn(1, many, head_dim, generator=generator)
    keys = torch.randn(1, PARTITION, head_dim, generator=generator)
    weights = torch.softmax(torch.bmm(queries, keys.transpose(1, 2)), dim=-1)
    agrees = all(
        torch.equal(torch.bmm(left[:, :few], right), torch.bmm(left, right)[:, :few])
        for left, right in ((queries, keys.transpose(1, 2)), (weights, keys))
    )
    return 1 if agrees else LONG_TILE
