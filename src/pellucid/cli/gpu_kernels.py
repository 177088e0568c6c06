"""`pellucid bench kernels --device cuda`: Triton's kernels and torch's, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.bench.settings import KernelSettings
from pellucid.config import ModelSettings, RunnerSettings
from pellucid.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from pellucid.kernels.gpu import Stopwatch
    from pellucid.kernels.gpu_measure import GpuLimits, GpuMeasurement

ROWS = (1, 16, 256)
NORM_ROWS = tuple(4**i for i in range(8))
TABLE_WIDTH = 110


def bench_gpu(
    model: ModelSettings, runner: RunnerSettings, load: KernelSettings, plot: Path | None
) -> dict[str, Any]:
    """Measure, show, and return all of it; thresholds and the plot are written if asked for.

    Raises:
        ConfigError: no such device, no Triton, or no matplotlib for a plot.
        ModelError: the model cannot be found or read.
    """
    from pellucid.cli.console import notes
    from pellucid.cli.kernels import shapes_of
    from pellucid.kernels.dispatch import KernelsUnavailable, select_ops
    from pellucid.kernels.gpu import Stopwatch, describe_device
    from pellucid.kernels.gpu_cases import Cases
    from pellucid.kernels.gpu_measure import measure_case, measure_limits, measure_norm_by_rows
    from pellucid.kernels.reference import ReferenceOps
    from pellucid.runner.device import pick_device, pick_dtype

    device = pick_device(runner.device)
    dtype = pick_dtype("auto", device)
    shapes = shapes_of(model)
    try:
        triton = select_ops("triton", device, shapes.head_dim)
    except KernelsUnavailable as error:
        raise ConfigError(str(error)) from None
    watch, cases = Stopwatch(device), Cases(device, dtype)
    with notes().status("measuring") as status:
        limits = measure_limits(watch, dtype)
        measured: list[GpuMeasurement] = []
        for case in cases.all(shapes, load.rows or list(ROWS), load.context):
            status.update(f"measuring {case.op}, {case.rows} rows")
            measured += measure_case(watch, case, [triton, ReferenceOps()])
        norms = list(measure_norm_by_rows(watch, cases, shapes.hidden, NORM_ROWS, triton))
    show(measured, limits)
    show(norms, limits)
    if plot is not None:
        draw_norms(norms, limits, plot)
    results = {
        "device": describe_device(device),
        "limits": limits,
        "kernels": measured,
        "norm_by_tokens": norms,
    }
    if load.write_thresholds:
        results["thresholds"] = write_thresholds(watch, dtype)
    return results


def write_thresholds(watch: Stopwatch, dtype: torch.dtype) -> str:
    """Measure and keep them; returns them as the variable spells them."""
    from pellucid.cli.console import results
    from pellucid.kernels.triton.calibrate import calibrate

    out = results(TABLE_WIDTH)
    thresholds = calibrate(watch, dtype, tell=out.print)
    out.print(f"thresholds: {thresholds}; written to {thresholds.write()}")
    return str(thresholds)


def show(measured: list[GpuMeasurement], limits: GpuLimits) -> None:
    """A table with a line per measurement."""
    from rich.table import Table

    from pellucid.cli.console import results

    table = Table(box=None)
    for name in ("kernel", "shape", "weights", "by"):
        table.add_column(name)
    for name in ("rows", "us", "GB/s", "TFLOP/s", "of limit", "error"):
        table.add_column(name, justify="right")
    for m in measured:
        limit, share = m.share(limits)
        table.add_row(
            *(m.op, m.shape, m.weights, m.kernels, f"{m.rows}", f"{m.seconds * 1e6:,.1f}"),
            f"{m.bytes / m.seconds / 1e9:,.0f}",
            f"{m.operations / m.seconds / 1e12:,.1f}" if m.operations else "",
            f"{limit} {share:4.0%}",
            "" if m.error is None else f"{m.error:.1e}",
        )
    out = results(TABLE_WIDTH)
    out.print(table)
    out.print(
        f"limits: copy {limits.memory / 1e9:,.0f} GB/s read and written,"
        f" product {limits.compute / 1e12:,.1f} TFLOP/s"
    )


def draw_norms(norms: list[GpuMeasurement], limits: GpuLimits, path: Path) -> None:
    """GB/s by rows, a line for each of the kernels.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'pellucid[plot]'") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for kernels in dict.fromkeys(m.kernels for m in norms):
        line = [(m.rows, m.bytes / m.seconds / 1e9) for m in norms if m.kernels == kernels]
        axes.plot(*zip(*line, strict=True), marker="o", label=kernels)
    axes.axhline(limits.memory / 1e9, color="grey", linestyle=":", label="copy")
    axes.set(xscale="log", xlabel="tokens", ylabel="GB/s", title=f"RMSNorm of {norms[0].shape}")
    axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot: cannot write {path}: {error}") from None
