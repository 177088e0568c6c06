"""A recorder for the CPU that is as strict as a GPU's: a replay repeats the very same ops.

What is recorded are torch's own ops with the memory and the numbers that they were called with. So
whatever the host decided while recording is decided for ever, and reading a number is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

HOST_READS = ("_local_scalar_dense", "nonzero", "lift_fresh", "equal")


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in HOST_READS:
            raise RuntimeError(f"{name} asks the device for numbers while it is recorded")
        out = func(*args, **(kwargs or {}))
        self.ops.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.ops:
            schema = func._schema
            aliases = [argument.alias_info for argument in schema.arguments]
            writes = any(alias is not None and alias.is_write for alias in aliases)
            is_view = not writes and any(r.alias_info is not None for r in schema.returns)
            if is_view:  # of the same memory as before
                continue
            again = func(*args, **kwargs)
            if not writes:
                for old, new in zip(_tensors(out), _tensors(again), strict=True):
                    old.copy_(new)


class TapeRecorder:
    """Implements `graphs.Recorder`."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replayed = 0

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        self.num_recorded += 1
        function()  # as `CudaGraphs` does, before it records
        with Tape() as tape:
            function()

        def replay() -> None:
            self.num_replayed += 1
            with torch.no_grad():
                tape.replay()

        return replay


def _tensors(out: Any) -> list[torch.Tensor]:
    return list(out) if isinstance(out, tuple | list) else [out]
