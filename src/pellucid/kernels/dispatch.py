"""Which backend runs the ops.

A backend is a class derived from `ReferenceOps`, listed here with a function that says why it
cannot run, if it cannot. `auto` takes the first of the list that can.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pellucid.kernels.reference import ReferenceOps

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
    make: Callable[[torch.device], ReferenceOps]
    obstacle: Callable[[torch.device], str | None]


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """A line of `pellucid doctor`."""

    name: str
    available: bool
    reason: str


BACKENDS: tuple[Backend, ...] = (
    Backend("reference", lambda device: ReferenceOps(), lambda device: None),
)
NOT_YET = {"native": "C++ kernels for CPUs", "triton": "Triton kernels for GPUs"}


def select_ops(kernels: str, device: torch.device) -> ReferenceOps:
    """The ops named `kernels`, or with "auto" the fastest that run on `device`.

    Raises:
        KernelsUnavailable: unknown kernels, or kernels that do not run here.
    """
    for backend in BACKENDS:
        if kernels in ("auto", backend.name):
            obstacle = backend.obstacle(device)
            if obstacle is None:
                return backend.make(device)
            if kernels != "auto":
                raise KernelsUnavailable(f"kernels {kernels!r} cannot run here: {obstacle}")
    if kernels in NOT_YET:
        raise KernelsUnavailable(
            f"kernels {kernels!r} ({NOT_YET[kernels]}) are not part of this version"
        )
    known = ", ".join(["auto", *(backend.name for backend in BACKENDS), *NOT_YET])
    raise KernelsUnavailable(f"unknown kernels {kernels!r}; there are {known}")


def describe(device: torch.device | None = None) -> list[KernelInfo]:
    """Every backend, whether it runs on `device` (the CPU by default), and why not."""
    where = torch.device("cpu") if device is None else device
    lines = []
    for backend in BACKENDS:
        obstacle = backend.obstacle(where)
        lines.append(KernelInfo(backend.name, obstacle is None, obstacle or "ready"))
    lines += [
        KernelInfo(name, False, f"{what} are not part of this version")
        for name, what in NOT_YET.items()
    ]
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
