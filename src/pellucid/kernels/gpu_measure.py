"""Every op on a GPU, Triton's and torch's: how fast, how near the limits, how exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.kernels.gpu import Stopwatch
from pellucid.kernels.gpu_cases import EPS, Case, Cases
from pellucid.kernels.reference import ReferenceOps

COPY_BYTES = 1 << 30  # far beyond any cache
MATRIX = 8192


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """What this device reached: bytes read and written by a copy, operations of a product."""

    memory: float  # bytes per second
    compute: float  # operations per second, in the model's dtype


@dataclass(frozen=True, slots=True)
class GpuMeasurement:
    """One op at one shape by one set of kernels; seconds of one execution."""

    op: str
    shape: str
    weights: str  # of products: int4, int8, bfloat16...
    rows: int
    kernels: str  # triton, torch, torch fused
    seconds: float
    bytes: int
    operations: int
    error: float | None  # norm of the difference to the float32 reference, over the norm of that
    copy_seconds: float | None = None  # of a copy that reads and writes as many bytes in all

    def share(self, limits: GpuLimits) -> tuple[str, float]:
        """What limits the op, and how much of what that limit allows was reached."""
        seconds = {
            "memory": self.bytes / limits.memory,
            "compute": self.operations / limits.compute,
        }
        limit = max(seconds, key=lambda name: seconds[name])
        return limit, seconds[limit] / self.seconds


def measure_limits(
    watch: Stopwatch, dtype: torch.dtype, copy_bytes: int = COPY_BYTES, matrix: int = MATRIX
) -> GpuLimits:
    """A copy within memory, and a product of square matrices of random numbers."""
    device = watch.device
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    memory = 2 * copy_bytes / watch.median(lambda: target.copy_(source))
    a, b = (torch.randn(matrix, matrix, device=device).to(dtype) for _ in range(2))
    return GpuLimits(memory, 2 * matrix**3 / watch.median(lambda: a @ b))


def measure_case(
    watch: Stopwatch, case: Case, every: Iterable[ReferenceOps]
) -> Iterator[GpuMeasurement]:
    """The case by each of the ops; of a product with integers only by those that have one."""
    expected, copied = case.expected(), copy_seconds(watch, case.bytes)
    for ops in every:
        if ops.name == "reference" and not case.baseline:
            continue
        works = case.copies(ops, watch.num_copies(case.bytes))
        error = relative_error(works[0](), expected)
        kernels = "torch" if ops.name == "reference" else ops.name
        yield _measurement(watch, case, kernels, works, error, copied)


def copy_seconds(watch: Stopwatch, num_bytes: int) -> float:
    """Of a copy that reads half of the bytes and writes the other half."""
    size, count = max(1, num_bytes // 2), watch.num_copies(num_bytes)
    sources = [torch.ones(size, dtype=torch.uint8, device=watch.device) for _ in range(count)]
    pairs = [(source, torch.empty_like(source)) for source in sources]
    return watch.median([partial(target.copy_, source) for source, target in pairs])


def measure_norm_by_rows(
    watch: Stopwatch, cases: Cases, n: int, rows: Iterable[int], triton: ReferenceOps
) -> Iterator[GpuMeasurement]:
    """RMSNorm of rows of n numbers: Triton's, the reference's, and torch's own fused one."""
    for count in rows:
        case = cases.rms_norm(count, n)
        yield from measure_case(watch, case, [triton, ReferenceOps()])
        weight = torch.ones(n, dtype=cases.dtype, device=cases.device)
        fused = replace(case, prepare=partial(_prepare_fused, weight))
        works = fused.copies(ReferenceOps(), watch.num_copies(case.bytes))
        yield _measurement(watch, case, "torch fused", works, None)


def _prepare_fused(
    weight: Tensor, ops: ReferenceOps, inputs: tuple[Tensor, ...]
) -> Callable[[], Tensor]:
    return partial(_fused_norm, inputs[0], weight)


def _fused_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[1],), weight, EPS)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in float64."""
    wide = expected.double()
    return float((found.double() - wide).norm() / wide.norm())


def _measurement(
    watch: Stopwatch,
    case: Case,
    kernels: str,
    works: Sequence[Callable[[], Tensor]],
    error: float | None,
    copied: float | None = None,
) -> GpuMeasurement:
    return GpuMeasurement(
        *(case.op, case.shape, case.weights, case.rows, kernels, watch.median(works)),
        *(case.bytes, case.operations, error, copied),
    )
