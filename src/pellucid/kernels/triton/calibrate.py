"""Measures what `thresholds.py` keeps: from which size on Triton is faster, on this GPU.

For each op, Triton and torch are timed at several sizes and numbers of rows. A size is won if
Triton is faster in the geometric mean over the rows, for the choice must not follow the rows; the
threshold is the smallest size from which on all are won. Taller tiles are taken where they are
faster and give the bits of the usual ones, row for row.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from pellucid.kernels.gpu import Stopwatch
from pellucid.kernels.gpu_cases import Case, Cases
from pellucid.kernels.reference import ReferenceOps
from pellucid.kernels.shapes import Shapes
from pellucid.kernels.triton import dense
from pellucid.kernels.triton.thresholds import NEVER, Thresholds
from pellucid.kernels.triton_ops import TritonOps

HEIGHTS = {"product_rows": (16, 32, 64), "dense_rows": (dense.ROWS, dense.TALL_ROWS)}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is tried."""

    rows: tuple[int, ...] = (1, 16, 128)
    columns: tuple[int, ...] = (64, 128, 512, 2048, 8192)
    heads: tuple[int, ...] = (64, 128, 256)
    hidden: tuple[int, ...] = (64, 576, 2048, 4096)  # columns of a head, and of a square product
    vocab: int = 32_768
    context: int = 1024
    tall_shapes: tuple[tuple[int, int], ...] = ((6144, 4096), (4096, 14336))
    tall_rows: int = 512


def calibrate(
    watch: Stopwatch,
    dtype: torch.dtype,
    sizes: Sizes | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Thresholds:
    """Measure; `tell` hears a line for every comparison."""
    cases, sizes = Cases(watch.device, dtype), sizes or Sizes()

    def threshold(name: str, columns: Iterable[int], make: Callable[[int, int], Case]) -> int:
        ratios = {}
        for size in columns:
            every = [_ratio(watch, make(count, size)) for count in sizes.rows]
            ratios[size] = math.exp(sum(map(math.log, every)) / len(every))
            tell(f"{name}, {size} columns: Triton takes {ratios[size]:.2f} of torch's time")
        return first_won(ratios)

    def decoding(count: int, size: int) -> Case:
        return cases.attention(_heads(size), [(sizes.context, 1)] * count)

    def logits(count: int, size: int) -> Case:
        return cases.logits(sizes.vocab, size, count)

    for size in sizes.hidden:  # told only: who asks for `dense` does so for the bits
        for count in sizes.rows:
            case = cases.dense_product("dense", size, size, count)
            ratio = _ratio(watch, case, Thresholds(dense=1))
            tell(f"dense, {size}x{size}, {count} rows: Triton takes {ratio:.2f} of cuBLAS's time")
    return Thresholds(
        head=threshold("head", sizes.hidden, logits),
        rms_norm=threshold("rms_norm", sizes.columns, cases.rms_norm),
        gated=threshold("gated", sizes.columns, cases.gated),
        rope=threshold("rope", sizes.heads, lambda count, size: cases.rope(_heads(size), count)),
        attention=threshold("attention", sizes.heads, decoding),
        product_rows=_height(watch, cases, sizes, "product_rows", tell),
        dense_rows=_height(watch, cases, sizes, "dense_rows", tell),
    )


def first_won(ratios: dict[int, float]) -> int:
    """The smallest size from which on no ratio exceeds 1; 0 if none does, NEVER if the last one."""
    least = 0
    for size, ratio in sorted(ratios.items()):
        if ratio > 1.0:
            least = size + 1
    return NEVER if least > max(ratios) else least


def same_bits(cases: Cases, shape: tuple[int, int], name: str, height: int, rows: int) -> bool:
    """Whether products with tiles of `height` are those of the usual ones, to the bit."""
    usual, tall = (
        _tall_case(cases, shape, name, rows, Thresholds(dense=1, **more))()
        for more in ({}, {name: height})
    )
    return torch.equal(usual, tall)


def _ratio(watch: Stopwatch, case: Case, thresholds: Thresholds | None = None) -> float:
    """Triton's time over torch's."""
    triton, torch_ = (
        watch.median(case.copies(ops, watch.num_copies(case.bytes)))
        for ops in (TritonOps(thresholds or Thresholds()), ReferenceOps())
    )
    return triton / torch_


def _height(
    watch: Stopwatch, cases: Cases, sizes: Sizes, name: str, tell: Callable[[str], None]
) -> int:
    heights, rows, seconds = HEIGHTS[name], sizes.tall_rows, {}
    for height in heights:
        if height != heights[0] and not all(
            same_bits(cases, shape, name, height, rows) for shape in sizes.tall_shapes
        ):
            tell(f"{name}={height}: other bits than {heights[0]}")
            continue
        thresholds = Thresholds(dense=1, **{name: height})
        seconds[height] = sum(
            watch.median(_tall_case(cases, shape, name, rows, thresholds))
            for shape in sizes.tall_shapes
        )
        tell(f"{name}={height}: {seconds[height] * 1e6:,.0f} us for {rows} rows")
    return min(seconds, key=lambda height: seconds[height])


def _tall_case(
    cases: Cases, shape: tuple[int, int], name: str, rows: int, thresholds: Thresholds
) -> Callable[[], torch.Tensor]:
    """The same numbers at every call."""
    fresh, (n, k) = Cases(cases.device, cases.dtype), shape
    if name == "product_rows":
        case = fresh.integer_product("", n, k, 4, rows)
    else:
        case = fresh.dense_product("", n, k, rows)
    return case.prepare(TritonOps(thresholds), case.inputs)


def _heads(head_dim: int) -> Shapes:
    return Shapes(hidden=0, inner=0, heads=16, kv_heads=4, head_dim=head_dim, vocab=0)
