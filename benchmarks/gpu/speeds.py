"""How fast are the kernels? Beside what this device reached on a copy and on a matrix product."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import models
from benchmarks.gpu.context import Context
from pellucid.kernels.gpu import describe_device
from pellucid.kernels.gpu_cases import Cases
from pellucid.kernels.gpu_measure import (
    GpuLimits,
    GpuMeasurement,
    measure_case,
    measure_norm_by_rows,
)
from pellucid.kernels.reference import ReferenceOps
from pellucid.kernels.shapes import Shapes
from pellucid.sample.backends import Sampler
from pellucid.sample.sampler import SamplingColumns

TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16_384)


def machine(context: Context) -> None:
    """The device, versions, and its limits."""
    context.keep("device", describe_device(context.device))
    context.keep("versions", {"torch": torch.__version__, "triton": _triton_version()})
    context.known_limits()


def _triton_version() -> str:
    try:
        import triton
    except ImportError as error:
        return f"none: {error}"
    return str(triton.__version__)


def kernels(context: Context) -> None:
    """Every op on the shapes of llama3-8b, Triton's and torch's."""
    shapes = Shapes.of(models.TINY if context.tiny else models.LLAMA3_8B)
    rows, length = ([1], 20) if context.tiny else ([1, 16, 256], 2048)
    watch, cases = context.stopwatch(), Cases(context.device, context.dtype)
    triton = context.triton(dense=1)
    limits = context.known_limits()
    context.keep("kernels", [])
    for case in cases.all(shapes, rows, length):
        if context.seconds_left < 5:
            return
        every = [ops for ops in (triton, ReferenceOps()) if ops is not None]
        try:
            for measured in measure_case(watch, case, every):
                context.keep("kernels", with_share(measured, limits))
        except Exception as error:
            context.keep("kernels", {"op": case.op, "rows": case.rows, "failed": str(error)[:500]})


def by_tokens(context: Context) -> None:
    """RMSNorm, with an addition and without, and SwiGLU by tokens, on llama3-8b's shapes."""
    hidden, inner = (64, 96) if context.tiny else (4096, 14_336)
    watch, cases = context.stopwatch(), Cases(context.device, context.dtype)
    triton = context.triton()
    if triton is None:
        return
    tokens = TOKENS[:2] if context.tiny else TOKENS
    limits = context.known_limits()
    context.keep("rms_norm", [])
    for measured in measure_norm_by_rows(watch, cases, hidden, tokens, triton):
        context.keep("rms_norm", with_share(measured, limits))
    for op, make, columns in (
        ("add_rms_norm", cases.add_rms_norm, hidden),
        ("silu_mul", cases.gated, inner),
    ):
        context.keep(op, [])
        for count in tokens:
            for measured in measure_case(watch, make(count, columns), [triton, ReferenceOps()]):
                context.keep(op, with_share(measured, limits))


def thresholds(context: Context) -> None:
    """Sizes from which on Triton is faster, and heights of tiles; kept for later."""
    if context.triton() is None:
        return
    from pellucid.kernels.triton.calibrate import Sizes, calibrate

    context.keep("lines", [])
    sizes = Sizes((1,), (64,), (64,), (64,), 40, 70, ((40, 96),), 70) if context.tiny else Sizes()
    found = calibrate(
        context.stopwatch(), context.dtype, sizes, lambda line: context.keep("lines", line)
    )
    context.keep("thresholds", asdict(found))
    if not context.tiny:
        context.keep("written to", str(found.write()))


def sampling(context: Context) -> None:
    """The samplers: the same tokens, and how long they take by the clock, launches included."""
    from pellucid.sample.backends import TorchSampler, gpu_sampler

    if context.triton() is None:
        return
    vocab, batches = (300, (2,)) if context.tiny else (151_936, (1, 32, 256))
    watch, ours, theirs = context.stopwatch(), gpu_sampler(max(batches)), TorchSampler()
    generator = torch.Generator(device=context.device).manual_seed(0)
    for rows in batches:
        logits = 3 * torch.randn(rows, vocab, generator=generator, device=context.device)
        every = np.arange(rows)
        for name, columns in _settings(rows).items():

            def compare(
                logits: torch.Tensor = logits,
                columns: SamplingColumns = columns,
                every: np.ndarray = every,
            ) -> dict[str, Any]:
                tokens, failed = ours.sample(logits, columns, every)
                alone, _ = ours.sample(logits[-1:].clone(), columns, every[-1:])
                expected, _ = theirs.sample(logits, columns, every)
                return {
                    "differ": int((on_host(tokens) != on_host(expected)).sum()),
                    "failed": int(on_host(failed).sum()),
                    "alone = together": bool((on_host(alone) == on_host(tokens[-1:])).all()),
                    "triton_seconds": watch.elapsed(lambda: step(ours, logits, columns, every)),
                    "torch_seconds": watch.elapsed(lambda: step(theirs, logits, columns, every)),
                }

            context.attempt(f"{name}, {rows} rows", compare)


def step(
    sampler: Sampler[Any], logits: torch.Tensor, columns: SamplingColumns, rows: np.ndarray
) -> None:
    """Sample as requests do, whose tokens stand one position further each time."""
    sampler.sample(logits, columns, rows)
    columns.position[rows] += 1


def on_host(values: torch.Tensor | np.ndarray) -> np.ndarray:
    """What a sampler handed out: tensors on the device, or arrays."""
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values


def with_share(measured: GpuMeasurement, limits: GpuLimits) -> dict[str, Any]:
    """As JSON has it, with its rates and its share of the limits."""
    found = asdict(measured)
    found["gb_per_s"] = measured.bytes / measured.seconds / 1e9
    if measured.copy_seconds is not None:
        found["copy_gb_per_s"] = measured.bytes / measured.copy_seconds / 1e9
    found["tflop_per_s"] = measured.operations / measured.seconds / 1e12
    found["limit"], found["share"] = measured.share(limits)
    return found


def _settings(rows: int) -> dict[str, SamplingColumns]:
    def of(temperature: float, top_k: int, top_p: float) -> SamplingColumns:
        floats = np.ones(rows, np.float32)
        numbers = np.arange(rows, dtype=np.int64)
        return SamplingColumns(
            *(floats * np.float32(temperature), numbers * 0 + top_k, floats * np.float32(top_p)),
            *(floats * 0, numbers, numbers + 7),
        )

    return {
        "greedy": of(0, 0, 1),
        "temperature": of(1, 0, 1),
        "top-p 0.9": of(1, 0, 0.9),
        "top-k 50, top-p 0.9": of(0.8, 50, 0.9),
    }
