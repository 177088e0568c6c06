"""How an int8 KV pool holds a head of keys or values: transformed, then rounded with one scale.

A head's largest component sets its scale. Keys have a few components that are large in every token,
beside which the others would be rounded away; the Walsh-Hadamard transform gives each component a
share of all of them (QuaRot, Ashkboos et al. 2024). It keeps scalar products, so kernels may
transform a query and the sum of weighted values instead of each key and value that they read.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hadamard(x: Tensor) -> Tensor:
    """The transform of heads [..., D], scaled to keep their length; its own inverse.

    Where D is no power of two, its largest such divisor says how many neighbours are transformed
    together.
    """
    size, width = x.shape[-1] & -x.shape[-1], 1
    mixed = x.float()
    while width < size:
        a, b = mixed.unflatten(-1, (-1, 2, width)).unbind(-2)
        mixed = torch.stack((a + b, a - b), dim=-2).flatten(-3)
        width *= 2
    return mixed * size**-0.5


def round_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """Heads [..., D], transformed: int8, to nearest, and their float32 scales [...], absmax / 127.

    A scale is not finite if a component is not. The floor keeps a zero head's scale from being 0.
    """
    mixed = hadamard(x)
    largest = mixed.abs().amax(-1).clamp_min(1e-30)
    scales = largest / torch.full_like(largest, 127)  # by a number a GPU multiplies with 1 / 127
    rounded = torch.round(mixed / scales.unsqueeze(-1))
    return rounded.nan_to_num(0.0).to(torch.int8), scales


def widen_heads(rounded: Tensor, scales: Tensor) -> Tensor:
    """What `round_heads` made, as float32 [..., D]."""
    return hadamard(rounded * scales.unsqueeze(-1))
