"""What machine this is: a speed without it says nothing.

Used by the benchmarks' reports and by `pellucid doctor`. Nothing here needs torch; what torch knows
(GPUs) is asked only if it can be imported.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from pellucid.config import MIB

CGROUP = Path("/sys/fs/cgroup")  # as a container sees its own, version 2

# Name shown -> flag in /proc/cpuinfo ("flags" on x86, "Features" on Arm).
INSTRUCTION_SETS = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-VNNI": "avx_vnni",
    "AVX-512 VNNI": "avx512_vnni",
    "AVX-512 BF16": "avx512_bf16",
    "AMX int8": "amx_int8",
    "AMX bf16": "amx_bf16",
    "NEON": "asimd",
    "NEON dot product": "asimddp",
    "NEON i8mm": "i8mm",
    "NEON bf16": "bf16",
    "SVE": "sve",
}


def describe_machine() -> dict[str, Any]:
    """CPU, memory, limits and GPUs of this machine, ready for JSON; sizes in MiB."""
    memory = psutil.virtual_memory()
    return {
        "system": system_name(),
        "architecture": platform.machine(),
        "cpu": cpu_model(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": usable_cores(),
        "instruction_sets": instruction_sets(),
        "ram_total_mib": memory.total // MIB,
        "ram_available_mib": memory.available // MIB,
        "ram_limit_mib": _in_mib(memory_limit()),
        "gpus": gpus(),
    }


def describe_versions(*others: str) -> dict[str, str | None]:
    """Versions of Python, pellucid, the packages that decide speed and `others`.

    None: not installed.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    decisive = ("pellucid", "torch", "triton", "numpy", "tokenizers", "llama-cpp-python")
    for package in (*decisive, *others):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    if versions["pellucid"] is None:
        from pellucid import __version__

        versions["pellucid"] = __version__
    return versions


def system_name() -> str:
    """The system and its version, such as "Linux 6.18.44", without the name of its build."""
    number = re.match(r"\d+(\.\d+)*", platform.release())
    return f"{platform.system()} {number[0] if number else ''}".strip()


def cpu_model() -> str:
    """The processor's name as its maker gives it."""
    named = _cpuinfo().get("model name") or _sysctl("machdep.cpu.brand_string")
    return named or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """The members of INSTRUCTION_SETS that this CPU has; empty where that cannot be read."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    if not flags and platform.system() == "Darwin":
        arm = {"asimd", "asimddp"}
        flags = arm if platform.machine() == "arm64" else _darwin_x86_flags()
    return [name for name, flag in INSTRUCTION_SETS.items() if flag in flags]


def usable_cores() -> float:
    """Cores this process may use: its affinity, cut by the container's CPU quota."""
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota, _, period = _cgroup_file("cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        return min(float(allowed), int(quota) / int(period))
    return float(allowed)


def memory_limit() -> int | None:
    """The container's memory limit in bytes (cgroup v2), None for none."""
    limit = _cgroup_file("memory.max")
    return int(limit) if limit.isdigit() else None


def gpus() -> list[dict[str, Any]]:
    """GPUs that torch sees; empty without torch."""
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": about.name,
                "memory_mib": about.total_memory // MIB,
                "compute_capability": f"{about.major}.{about.minor}",
            }
        )
    return found


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _darwin_x86_flags() -> set[str]:
    features = f"{_sysctl('machdep.cpu.features')} {_sysctl('machdep.cpu.leaf7_features')}"
    return set(features.lower().split())


def _sysctl(name: str) -> str:
    if platform.system() != "Darwin":
        return ""
    answer = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def _cgroup_file(name: str) -> str:
    """A file of this process's cgroup; "" if there is none."""
    try:
        return (CGROUP / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _in_mib(size: int | None) -> int | None:
    return None if size is None else size // MIB
