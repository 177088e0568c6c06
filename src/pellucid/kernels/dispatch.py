"""Which backend runs the ops.

A backend is a class derived from `ReferenceOps`, listed here with a function that says why it
cannot run, if it cannot. `auto` takes the first of the list that can; as the reference always can,
what stands behind it runs only where it is asked for.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pellucid.kernels import native, triton
from pellucid.kernels.reference import ReferenceOps

logger = logging.getLogger(__name__)

CPU_FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)


class KernelsUnavailable(ValueError):  # noqa: N818 - says what is so, as its message does
    """The kernels that were asked for do not run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Backend:
    """`obstacle` returns why the backend cannot run on a device, or None."""

    name: str
    make: Callable[[], ReferenceOps]
    obstacle: Callable[[torch.device], str | None] = lambda device: None
    head_dim_obstacle: Callable[[int], str | None] = lambda head_dim: None
    ranks_obstacle: str | None = None  # why it cannot run in several ranks
    about: Callable[[], str] = lambda: "ready"  # once it is known to run


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """A line of `pellucid doctor`."""

    name: str
    available: bool
    reason: str


def _triton_ops() -> ReferenceOps:
    from pellucid.kernels.triton_ops import TritonOps  # imports Triton

    return TritonOps()


BACKENDS: tuple[Backend, ...] = (
    Backend(
        "native",
        native.NativeOps,
        native.obstacle,
        native.head_dim_obstacle,
        "one process uses a whole CPU, and --tensor-parallel-size is more than 1",
        native.about,
    ),
    Backend("reference", ReferenceOps),
    # Last, as long as no GPU has run them.
    Backend(
        "triton",
        _triton_ops,
        triton.obstacle,
        triton.head_dim_obstacle,
        about=triton.about,
    ),
)


def select_ops(
    kernels: str, device: torch.device, head_dim: int | None = None, num_ranks: int = 1
) -> ReferenceOps:
    """The ops named `kernels`, or with "auto" the fastest that run on `device`.

    Args:
        head_dim: size of the heads of the model that is to run, if that is known.
        num_ranks: how many processes compute the model together.

    Raises:
        KernelsUnavailable: unknown kernels, or kernels that do not run here.
    """
    for backend in BACKENDS:
        if kernels in ("auto", backend.name):
            obstacle = backend.obstacle(device)
            if obstacle is None and head_dim is not None:
                obstacle = backend.head_dim_obstacle(head_dim)
                if num_ranks > 1:
                    obstacle = obstacle or backend.ranks_obstacle
                if obstacle is not None and kernels == "auto":
                    logger.warning("%s kernels cannot run this model: %s", backend.name, obstacle)
            if obstacle is None:
                return _made(backend)
            if kernels != "auto":
                raise KernelsUnavailable(f"kernels {kernels!r} cannot run here: {obstacle}")
    known = ", ".join(["auto", *(backend.name for backend in BACKENDS)])
    raise KernelsUnavailable(f"unknown kernels {kernels!r}; there are {known}")


def _made(backend: Backend) -> ReferenceOps:
    try:
        return backend.make()
    except ValueError as error:  # a setting of the backend's own
        raise KernelsUnavailable(f"kernels {backend.name!r} cannot run here: {error}") from None


def describe(device: torch.device | None = None) -> list[KernelInfo]:
    """Every backend, whether it runs on `device` (the CPU by default), and why not."""
    where = torch.device("cpu") if device is None else device
    lines = []
    for backend in BACKENDS:
        obstacle = backend.obstacle(where)
        reason = backend.about() if obstacle is None else obstacle
        lines.append(KernelInfo(backend.name, obstacle is None, reason))
    return lines


def instruction_sets() -> list[str]:
    """The vector extensions of this CPU that matter here; what torch detects where unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            present = set(value.split())
            return [flag for flag in CPU_FLAGS if flag in present]
    return [f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}".lower()]
