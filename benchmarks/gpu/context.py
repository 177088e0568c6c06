"""What a stage is given, and where it puts what it finds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import torch

from pellucid.kernels.gpu import Stopwatch
from pellucid.kernels.gpu_measure import GpuLimits, measure_limits
from pellucid.kernels.reference import ReferenceOps


@dataclass
class Context:
    """One stage's device, limits and results. `tiny` is for trying out the script."""

    device: torch.device
    tiny: bool
    deadline: float  # by time.monotonic
    path: Path  # of the results so far
    limits: GpuLimits | None = None  # as an earlier stage measured them; see `known_limits`
    model: Path | None = None  # a .gguf file, for the stages that compare tokens
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16; the interpreter of a try-out has float32 only."""
        return torch.float32 if self.tiny else torch.bfloat16

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def stopwatch(self) -> Stopwatch:
        return Stopwatch(self.device, 0.0 if self.tiny else 0.03)

    def known_limits(self) -> GpuLimits:
        """The device's limits, measured now if no stage of this command has done so."""
        if self.limits is None:
            sizes = {"copy_bytes": 1 << 20, "matrix": 64} if self.tiny else {}
            self.limits = measure_limits(self.stopwatch(), self.dtype, **sizes)
            self.keep("limits", self.limits)
        return self.limits

    def triton(self, **thresholds: int) -> ReferenceOps | None:
        """Triton's ops with these thresholds, the defaults otherwise; None where it cannot run."""
        from pellucid.kernels import triton

        if (obstacle := triton.obstacle(self.device)) is not None:
            self.keep("no triton", obstacle)
            return None
        from pellucid.kernels.triton.thresholds import Thresholds
        from pellucid.kernels.triton_ops import TritonOps

        return TritonOps(Thresholds(**thresholds))

    def keep(self, name: str, value: Any) -> None:
        """Write a result down at once. In a list of that name if there is one."""
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if isinstance(self.found.get(name), list):
            self.found[name].append(value)
        else:
            self.found[name] = value
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.found, default=str), encoding="utf-8")
        part.replace(self.path)

    def attempt(self, name: str, work: Callable[[], Any]) -> None:
        """Keep what `work` returns, or why it failed; the stage goes on."""
        try:
            self.keep(name, work())
        except Exception as error:
            self.keep(name, {"failed": f"{type(error).__name__}: {error}"[:2000]})
