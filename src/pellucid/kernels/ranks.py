"""The processes that share a model's weights, and what they tell each other while they compute.

Each of `size` ranks holds a share of every matrix (docs/tensor-parallel.md). What is here is the
case of one, which has everything already; `runner/parallel/collectives.py` is the other.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Ranks:
    """All ranks, as one of them sees them. This one is alone."""

    rank = 0
    size = 1

    def enter(self, device: torch.device) -> None:
        """Meet the others, once this rank's weights are on `device`."""

    def least(self, count: int) -> int:
        """The smallest `count` of all ranks. All of them ask."""
        return count

    def sum(self, part: Tensor) -> Tensor:
        """What all ranks' `part` of one shape add up to, on each of them.

        An element's bits depend on the parts of that element alone: they are added in the order of
        the ranks, however many rows there are.
        """
        return part

    def joined(self, part: Tensor, width: int) -> Tensor:
        """On rank 0 all ranks' columns, [n, width]; the others get what they gave.

        `part` holds the columns `rows_of_rank(width, rank, size)`.
        """
        return part


ALONE = Ranks()


def rows_of_rank(count: int, rank: int, size: int) -> range:
    """Which of `count` rows of the vocabulary a rank holds: shares differ by one at most."""
    return range(count * rank // size, count * (rank + 1) // size)
