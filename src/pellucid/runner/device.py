"""Everything the runner asks a device or this machine: here alone the engine knows torch.cuda."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.config import EngineConfig
from pellucid.errors import ConfigError
from pellucid.kernels.dispatch import instruction_sets

_BFLOAT16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CGROUP = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU if there is one.

    A GPU that has a number becomes the current one: what is launched without naming a device, as
    Triton does, goes there.

    Raises:
        ConfigError: there is no such device here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device {name!r} is not here: torch sees {count} GPUs", param="device")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def pick_rank_device(name: str, rank: int, size: int) -> torch.device:
    """The device of one of `size` ranks: the GPU of its number, or the CPU that all share.

    Raises:
        ConfigError: see `pick_device`; or there are fewer GPUs than ranks.
    """
    device = pick_device(name)
    if size == 1 or device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if device.index is not None:
        raise ConfigError(
            f"device {name!r} is one GPU, but tensor_parallel_size is {size}; say cuda",
            param="device",
        )
    if size > count:
        raise ConfigError(
            f"tensor_parallel_size {size} needs as many GPUs, and torch sees {count}",
            param="tensor_parallel_size",
        )
    return pick_device(f"cuda:{rank}")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`; "auto" is bfloat16 where the hardware computes in it."""
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    native = not _BFLOAT16_INSTRUCTIONS.isdisjoint(instruction_sets())
    return torch.bfloat16 if native else torch.float32


def pick_kv_dtype(
    config: EngineConfig, device: torch.device, kernels: str, plain_keys: bool
) -> torch.dtype:
    """The dtype of the KV pool, as `kv_cache_dtype` says.

    "auto" is the model's, but int8 for native kernels if that is "auto", too, and the model's keys
    are such that 8 bits do (`ModelConfig.plain_keys`): native kernels round what goes into products
    to 8 bits anyway, and are limited by what they read.
    """
    name, model_dtype = config.cache.kv_cache_dtype, config.model.dtype
    if name == "auto" and model_dtype == "auto" and kernels == "native" and plain_keys:
        return torch.int8
    if name == "auto":
        return pick_dtype(model_dtype, device)
    return torch.int8 if name == "int8" else _DTYPES[name]


def available_memory(device: torch.device) -> int:
    """Bytes that could be taken now: of the GPU, or of this process's share of the machine."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what loading has left behind
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        import psutil

        available = int(psutil.virtual_memory().available)
    except ImportError:  # a bare machine with torch, as GPUs are lent
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([available, *(limit - used for limit, used in _cgroup_memory())])


def resident_memory() -> int:
    """Bytes of memory that this process takes now; 0 if that cannot be told."""
    try:
        import psutil
    except ImportError:
        return 0
    return int(psutil.Process().memory_info().rss)


def synchronize(device: torch.device) -> None:
    """Wait until all work given to `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Link:
    """Copies to `device` that the host does not wait for. Implements `staging.Link`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._is_cuda = device.type == "cuda"

    def buffer(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._is_cuda)

    def send(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def mark(self) -> CudaMark | NoMark:
        return CudaMark() if self._is_cuda else NoMark()


class CudaMark:
    """A point in the work of the GPU's current stream."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> None:
        self._event.synchronize()


class NoMark:
    """Of a device whose work is done when it was asked for."""

    def wait(self) -> None:
        """At once."""


class Fetched:
    """Tensors on their way to the host, which goes on meanwhile."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        link = Link(tensors[0].device)
        self._arrived = [
            torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda).copy_(t, non_blocking=True)
            for t in tensors
        ]
        self._mark = link.mark()

    def wait(self) -> list[NDArray[Any]]:
        """Arrays of them."""
        self._mark.wait()
        return [tensor.numpy() for tensor in self._arrived]


class CudaGraphs:
    """Records what is launched on the GPU, to be launched again as one. See `graphs.Recorder`.

    All graphs take their memory from one pool: they never run at the same time, and nothing that a
    graph computes there is needed after it has ended.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        # What happens on a first call only (compiling and loading kernels, workspaces of cuBLAS)
        # must not happen while recording.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            function()
        current = torch.cuda.current_stream()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                without_collector(),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                function()
        except BaseException:
            torch.cuda.set_stream(current)  # where `graph` leaves another if it cannot end
            raise
        return graph.replay


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep the garbage collector from running, after it has run once more.

    If it ended a CUDA graph of somebody's while another is recorded, the latter would be lost.
    torch.cuda.graph has not seen to that since 2.9.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory did not suffice, or the error arose while that was handled."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, torch.OutOfMemoryError):
        found = found.__cause__ or found.__context__
    return found is not None


def graph_recorder(device: torch.device) -> CudaGraphs | None:
    """What records work on `device`; None where nothing does."""
    return CudaGraphs() if device.type == "cuda" else None


def compute_threads() -> int:
    """Physical cores that this process may use, by its affinity and its cgroup's quota."""
    if not hasattr(os, "sched_getaffinity"):  # macOS, Windows
        import psutil

        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    cores = {
        _read(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list")) or str(cpu)
        for cpu in cpus
    }
    return max(1, min([len(cores), *_cgroup_cpus()]))


def keep_freed_memory() -> None:
    """Let malloc keep what torch frees on the CPU, instead of returning it to the system.

    By default glibc gives large tensors back at once, and the next step pays for every page of
    them again, which costs more than filling them. Elsewhere this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def _own_cgroups() -> list[Path]:
    """This process's cgroup (version 2) and the ones it lies in."""
    line = _read(Path("/proc/self/cgroup")) or ""
    if not line.startswith("0::/"):
        return [_CGROUP]
    own = _CGROUP / line.removeprefix("0::/").splitlines()[0]
    return [own, *(parent for parent in own.parents if parent.is_relative_to(_CGROUP))]


def _cgroup_memory() -> list[tuple[int, int]]:
    """(limit, used) in bytes of every memory limit over this process.

    What the kernel would drop to make room, the file cache, does not count as used.
    """
    limits = []
    for group in _own_cgroups():
        limit, used = _read(group / "memory.max"), _read(group / "memory.current")
        if limit and used and limit.isdigit():
            stat = dict(line.split() for line in (_read(group / "memory.stat") or "").splitlines())
            limits.append((int(limit), int(used) - int(stat.get("inactive_file", 0))))
    return limits


def _cgroup_cpus() -> list[int]:
    """Whole CPUs that the quotas over this process amount to."""
    quotas = []
    for group in _own_cgroups():
        quota, _, period = (_read(group / "cpu.max") or "max").partition(" ")
        if quota.isdigit() and period.isdigit():
            quotas.append(max(1, int(quota) // int(period)))
    return quotas


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
