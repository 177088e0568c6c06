"""Is every op right? Triton's kernels against the reference, and rows alone and together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.gpu import models
from benchmarks.gpu.context import Context
from pellucid.kernels.gpu_cases import Case, Cases
from pellucid.kernels.gpu_measure import relative_error
from pellucid.kernels.reference import ReferenceOps
from pellucid.kernels.shapes import Shapes

# What rounding to 16 bits may do to a norm of differences; float32 stays far below.
ALLOWED = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}


def kernels(context: Context) -> None:
    """Every op against the reference in float32 on this device; rows alone and together."""
    ops = context.triton(dense=1)
    if ops is None:
        return
    for name, heights in (("product_rows", (32, 64)), ("dense_rows", (128,))):
        for height in heights:
            context.attempt(f"bits {name}={height}", _same_bits(context, name, height))
    for dtype in [torch.float32] if context.tiny else ALLOWED:
        cases = Cases(context.device, dtype)
        context.attempt(f"rows alone {dtype}", _alone(context, cases, ops))
        rows = [1, 7, 300] if dtype == torch.bfloat16 else [3]
        for case in _cases(context, cases, rows):
            name = f"{case.op} {case.shape} {case.rows} {case.weights} {dtype}"
            context.attempt(name, _check(ops, case))


def _cases(context: Context, cases: Cases, rows: list[int]) -> Iterator[Case]:
    shapes = Shapes.of(models.TINY if context.tiny else models.QWEN3_06B)
    yield from cases.all(shapes, rows, 70 if context.tiny else 700)


def _check(ops: ReferenceOps, case: Case) -> Callable[[], dict[str, object]]:
    def check() -> dict[str, object]:
        found = case.prepare(ops, case.inputs)()
        error = relative_error(found, case.expected())
        return {"error": error, "ok": error < ALLOWED[found.dtype]}

    return check


def _alone(context: Context, cases: Cases, ops: ReferenceOps) -> Callable[[], dict[str, bool]]:
    """Whether rows have the same bits in steps of other sizes; torch's product is there to compare.

    In the interpreter a row's place in its tile may matter, on a GPU it must not.
    """
    count, n, k = (20, 40, 64) if context.tiny else (300, 4096, 1024)
    parts = (slice(0, 1), slice(16, 17), slice(0, 17), slice(3, 4), slice(2, 19))

    def check() -> dict[str, bool]:
        dense = cases.dense_product("", n, k, count)
        found = {}
        for name, case, by in (
            ("dense", dense, ops),
            ("int4", cases.integer_product("", n, k, 4, count), ops),
            ("torch", dense, ReferenceOps()),
            ("norm", cases.add_rms_norm(count, k), ops),
            ("gated", cases.gated(count, k), ops),
        ):
            together = case.prepare(by, case.inputs)()
            found[name] = all(torch.equal(_rows(case, by, rows), together[rows]) for rows in parts)
        return found

    return check


def _rows(case: Case, ops: ReferenceOps, rows: slice) -> Tensor:
    inputs = tuple(t[rows] if len(t) == case.rows else t for t in case.inputs)
    return case.prepare(ops, inputs)()


def _same_bits(context: Context, name: str, height: int) -> Callable[[], bool]:
    def compare() -> bool:
        from pellucid.kernels.triton.calibrate import same_bits

        shape, rows = ((40, 96), 70) if context.tiny else ((4096, 4096), 500)
        return same_bits(Cases(context.device, context.dtype), shape, name, height, rows)

    return compare
