"""How what the host decided about logits gets to where they are."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on `device` that the host does not wait for.

    A GPU copies out of pinned memory, which torch hands out again only after the copy has ended.
    On a CPU these may be `values` themselves.
    """
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
