"""Triton kernels for GPUs, one per file: what it computes, and what it reads and writes, on top.

Tillet, Kung and Cox 2019. A kernel is written for one *program*, which works on a small block of
the result; launching it starts a grid of programs. Nothing here but `obstacle` can be imported
without Triton. With TRITON_INTERPRET=1 in the environment before Triton is imported, its
interpreter runs the same kernels on the CPU, one program after the other: slow, but exact enough to
test them anywhere.

**A row's result does not depend on the rows beside it.** Whatever decides the order of a sum (block
sizes along the summed dimension, partitions of a context, the kind of product) follows from the
shape of the model alone, never from the number of rows in the step.

These files have no `from __future__ import annotations`: Triton looks at the annotations.
"""

import importlib
import os

import torch

from pellucid.kernels.gpu import is_current

MAX_HEAD_DIM = 256


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def obstacle(device: torch.device) -> str | None:
    """Why the kernels cannot run on `device`, or None."""
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        return f"they are for NVIDIA GPUs, not for {device.type}"
    if device.index is not None and not is_current(device):  # where Triton launches
        return f"they run on torch's current GPU, and that is not {device}"
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"Triton cannot be imported ({error}): pip install 'pellucid[gpu]'"
    return None


def about() -> str:
    """What `doctor` says of kernels that run."""
    from pellucid.kernels.triton.thresholds import Thresholds, origin

    how = "in the interpreter" if interpreted() else "not yet run on a GPU"
    try:
        thresholds = f"{Thresholds.current()} ({origin()})"
    except ValueError as error:
        thresholds = str(error)
    return f"ready, {how}; taken only where --kernels triton says so; thresholds: {thresholds}"


def head_dim_obstacle(head_dim: int) -> str | None:
    """Why attention cannot work on heads of this size, or None."""
    if head_dim <= MAX_HEAD_DIM:
        return None
    return f"heads of {head_dim} are larger than {MAX_HEAD_DIM}"
