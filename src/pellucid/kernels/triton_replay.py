"""The attention plan of a step that is replayed, as CUDA graphs are, with other numbers each time.

`triton.attention_plan` cuts a step whose lengths the host knows. Here only a bound is known while
the plan is made: the table of tiles is computed from the step's positions, on the device and in the
graph, and the grid has a program for every partition that a context up to the bound can have. One
that a context has not ends at once, and a tile's row is merged over those that it has: the sums and
their order are those of any other step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pellucid.kernels.interface import AttentionInputs, most_partitions
from pellucid.kernels.triton.attention import PARTITION
from pellucid.kernels.triton.attention_plan import Heads, Plan, Tiles


def plan_unseen(inputs: AttentionInputs, heads: Heads, windows: Sequence[int | None]) -> Plan:
    """See `ReferenceOps.plan_attention`; every sequence has one token, hence one tile."""
    positions = inputs.positions.to(torch.int32)
    row = torch.arange(len(positions), dtype=torch.int32, device=positions.device)
    table = torch.stack((row, row, positions, torch.ones_like(row)), dim=1)
    limit = inputs.context_limit
    parts = {window: most_partitions(limit, window, PARTITION.value) for window in set(windows)}
    count = heads.most_tiles(max(parts.values()))
    groups = [Tiles(tiles, parts, split=True) for tiles in table.split(count)]
    return Plan(groups, heads.rows)
