"""`pellucid bench kernels`: what is measured, and how it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pellucid.bench.settings import KernelSettings
from pellucid.config import ModelSettings, RunnerSettings
from pellucid.errors import ConfigError

if TYPE_CHECKING:
    from pellucid.kernels.machine_limits import Limits
    from pellucid.kernels.measure import Measurement
    from pellucid.kernels.shapes import Shapes


ROWS = (1, 8, 32, 256)
TABLE_WIDTH = 100


def measure_kernels(
    model: ModelSettings, threads: int | None, load: KernelSettings
) -> tuple[Limits, list[Measurement]]:
    """The machine's limits, and every kernel at every number of rows.

    Raises:
        ConfigError: the kernels do not run here, or not on heads of the model's size.
        ModelError: the model cannot be found or read.
    """
    from pellucid.kernels.dispatch import KernelsUnavailable
    from pellucid.kernels.measure import measure
    from pellucid.runner.device import compute_threads

    shapes = shapes_of(model)
    try:
        return measure(shapes, load.rows or ROWS, load.context, threads or compute_threads())
    except KernelsUnavailable as error:
        raise ConfigError(str(error)) from None


def on_gpu(runner: RunnerSettings) -> bool:
    """Whether a GPU is to be measured: only if it is asked for by name."""
    return runner.device.startswith("cuda")


def shapes_of(model: ModelSettings) -> Shapes:
    """The sizes of a model. Raises ModelError if it cannot be found or read."""
    from pellucid.cli.download import fetch
    from pellucid.kernels.shapes import Shapes
    from pellucid.load.model_config import load_config

    return Shapes.of(load_config(fetch(model)))


def show_kernels(limits: Limits, measured: list[Measurement]) -> None:
    """A table with a line per measurement."""
    from rich.table import Table

    from pellucid.cli.console import results

    table = Table(box=None)
    for name in ("kernel", "shape", "weights"):
        table.add_column(name)
    for name in ("rows", "us", "GB/s", "GOP/s", "of limit", "error"):
        table.add_column(name, justify="right")
    for m in measured:
        row = m.op, m.shape, m.weights, f"{m.rows}", f"{m.seconds * 1e6:,.1f}"
        table.add_row(*row, *_rates(m, limits))
    out = results(TABLE_WIDTH)
    out.print(table)
    out.print(
        f"limits: {limits.memory / 1e9:,.0f} GB/s;"
        f" int8 {limits.int8 / 1e9:,.0f}, bfloat16 {limits.bfloat16 / 1e9:,.0f},"
        f" float32 {limits.float32 / 1e9:,.0f} GOP/s"
    )


def _rates(m: Measurement, limits: Limits) -> tuple[str, str, str, str]:
    operations = f"{m.operations / m.seconds / 1e9:,.0f}" if m.operations else ""
    share = m.share(limits)
    of_limit = "" if share is None else f"{share[0]} {share[1]:4.0%}"
    return f"{m.bytes / m.seconds / 1e9:,.1f}", operations, of_limit, f"{m.error:.1e}"
