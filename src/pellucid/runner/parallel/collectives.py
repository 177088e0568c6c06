"""What ranks send each other while they compute: torch.distributed, NCCL between GPUs, else gloo.

Tensors only: its collectives of objects, which pickle, are not used. It opens sockets of its own,
which are bound to the loopback interface; the ranks find each other through a file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pellucid.errors import ConfigError
from pellucid.kernels.ranks import Ranks, rows_of_rank

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
# A rank waits so long for another: it may have kernels to compile. One that died is noticed at once
# (`workers.py`).
PATIENCE = timedelta(minutes=10)
# [rows] of each rank, one below the other. The name that versions before 2.13 have is deprecated.
_gather_rows = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class ProcessRanks(Ranks):
    """Ranks of which each is a process of this machine. Only one group at a time in a process.

    Args:
        folder: where the ranks meet; nobody else may write there.
        before_entering: is called when this rank's weights are loaded.
    """

    def __init__(
        self, rank: int, size: int, folder: Path, before_entering: Callable[[], None]
    ) -> None:
        self.rank = rank
        self.size = size
        self._folder = folder
        self._before_entering = before_entering
        self._device: torch.device | None = None
        # Kept until the ranks have ended: one that is given up while somebody removes the folder
        # may wait for minutes for its file to come back.
        self._store: Any = None  # a FileStore

    def enter(self, device: torch.device) -> None:
        if dist.is_initialized():
            raise ConfigError("a process can be in one group of ranks at a time")
        self._before_entering()
        is_cuda = device.type == "cuda"
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = LOOPBACK
        self._store = dist.FileStore(str(self._folder / "ranks"))  # type: ignore[attr-defined]
        self._store.set_timeout(PATIENCE)
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=self._store,
            rank=self.rank,
            world_size=self.size,
            timeout=PATIENCE,
            device_id=device if is_cuda else None,
        )
        self._device = device
        self.least(0)  # connects all

    def leave(self, *, as_last: bool = False) -> None:
        """Close the connections, if there are any.

        The others have to do so at the same time. If they are gone (`as_last`), NCCL could wait for
        them for ever: its connections are left to the end of the process.
        """
        if self._device is not None and not (as_last and self._device.type == "cuda"):
            dist.destroy_process_group()
        self._device = None

    def least(self, count: int) -> int:
        return int(self._every(torch.tensor([count], device=self._device)).min())

    def sum(self, part: Tensor) -> Tensor:
        parts = self._every(part)
        total = parts[0].float()
        for other in parts[1:]:
            total = total + other
        return total.to(part.dtype)

    def joined(self, part: Tensor, width: int) -> Tensor:
        counts = [len(rows_of_rank(width, rank, self.size)) for rank in range(self.size)]
        padded = F.pad(part, (0, max(counts) - part.shape[1]))
        if self.rank > 0:
            dist.gather(padded, dst=0)
            return part
        parts = [torch.empty_like(padded) for _ in counts]
        dist.gather(padded, parts, dst=0)
        return torch.cat([p[:, :count] for p, count in zip(parts, counts, strict=True)], dim=-1)

    def told(self, tokens: Tensor) -> Tensor:
        """`tokens` as rank 0 has them, in place."""
        dist.broadcast(tokens, src=0)
        return tokens

    def _every(self, part: Tensor) -> Tensor:
        """[size, *part.shape], on each rank."""
        every = part.new_empty((self.size * len(part), *part.shape[1:]))
        _gather_rows(every, part.contiguous())
        return every.view(self.size, *part.shape)
