"""How what the host decided about logits gets to where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Kept:
    """Arrays on a device, made and sent anew only when what they say has changed."""

    def __init__(self) -> None:
        self._key: object = None
        self._tensors: list[Tensor] = []

    def tensors(
        self, key: object, device: torch.device, make: Callable[[], Sequence[NDArray[Any]]]
    ) -> list[Tensor]:
        """What `make` returns, on the device; `key` tells it from all else that it might return."""
        if key != self._key:
            self._tensors = [to_device(values, device) for values in make()]
            self._key = key
        return self._tensors
