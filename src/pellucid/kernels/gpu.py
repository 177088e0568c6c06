"""What kernels and their measurements ask of a GPU: the only place here that knows torch.cuda."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import torch

FEWEST_RUNS, MOST_RUNS = 5, 200
MOST_COPIES = 32
FLUSH_BYTES = 256 << 20  # at least; writing them also gives the host time to launch what follows


def device_name(device: torch.device) -> str:
    """The GPU's own name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def platform_key(device: torch.device) -> str:
    """What a measured speed holds for: the device, and the versions of what drives it."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "missing"
    return f"{device_name(device)}, torch {torch.__version__}, triton {triton}"


def default_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_current(device: torch.device) -> bool:
    """Whether what is launched without naming a GPU goes to this one."""
    return torch.cuda.is_available() and torch.cuda.current_device() == device.index


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name, multiprocessors, bytes of memory and of L2, ready for JSON."""
    if device.type != "cuda":
        return {"name": "cpu", "threads": torch.get_num_threads()}
    about = torch.cuda.get_device_properties(device)
    return {
        "name": about.name,
        "multiprocessors": about.multi_processor_count,
        "memory_bytes": about.total_memory,
        "l2_bytes": about.L2_cache_size,
        "capability": f"{about.major}.{about.minor}",
        "cuda": torch.version.cuda,
    }


def synchronize(device: torch.device) -> None:
    """Wait until all work given to `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Times work on one device, with what it reads out of the cache.

    On a GPU: between two events, after more than the L2 was written, and as a replayed graph, so
    that how fast Python launches does not count. On a CPU: by the clock.

    Args:
        seconds: of all runs of one work together, roughly; there are at least FEWEST_RUNS.
    """

    def __init__(self, device: torch.device, seconds: float = 0.05) -> None:
        self.device = device
        self._seconds = seconds
        self._flushed: torch.Tensor | None = None
        if device.type == "cuda":
            cache = int(torch.cuda.get_device_properties(device).L2_cache_size)
            size = max(4 * cache, FLUSH_BYTES)
            self._flushed = torch.empty(size // 4, dtype=torch.int32, device=device)

    def num_copies(self, num_bytes: int) -> int:
        """Of work that moves so many bytes: how much of it to time at once; see `median`."""
        if self._flushed is None:
            return 1
        return max(1, min(MOST_COPIES, FLUSH_BYTES // max(num_bytes, 1)))

    def median(
        self, work: Callable[[], object] | Sequence[Callable[[], object]], *, replay: bool = True
    ) -> float:
        """Seconds of one execution of `work`.

        Args:
            work: or copies of it, each on memory of its own, so that none finds in the cache what
                another has read. They run one after the other, and the time is divided: starting
                a graph takes microseconds, as long as a small kernel.
            replay: record it first; not for work that copies from the host or waits for the GPU.
        """
        copies = [work] if callable(work) else list(work)

        def every() -> None:
            for one in copies:
                one()

        return self._median(every, replay) / len(copies)

    def _median(self, work: Callable[[], object], replay: bool) -> float:
        if self._flushed is None:
            return self.elapsed(work)
        work()
        run = self._recorded(work) if replay else work
        count = self._runs(run)
        events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(count)
        ]
        for begin, end in events:
            self._flushed.zero_()
            begin.record()
            run()
            end.record()
        synchronize(self.device)
        return median(begin.elapsed_time(end) for begin, end in events) * 1e-3

    def elapsed(self, work: Callable[[], object]) -> float:
        """Seconds by the clock until the device is done, launching included."""
        work()
        times = []
        for _ in range(self._runs(work)):
            synchronize(self.device)
            begin = time.perf_counter()
            work()
            synchronize(self.device)
            times.append(time.perf_counter() - begin)
        return median(times)

    def _runs(self, work: Callable[[], object]) -> int:
        synchronize(self.device)
        begin = time.perf_counter()
        work()
        synchronize(self.device)
        once = max(time.perf_counter() - begin, 1e-6)
        return max(FEWEST_RUNS, min(MOST_RUNS, int(self._seconds / once)))

    def _recorded(self, work: Callable[[], object]) -> Callable[[], object]:
        """`work` as a graph; as it is where it does something that cannot be recorded."""
        current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # recording demands that it ran on another stream before
            work()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # A collection during the recording could free a graph or an event, which spoils it.
        gc.collect()
        collects = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.graph(graph):
                work()
        except RuntimeError:
            torch.cuda.set_stream(current)  # where `graph` leaves another if it cannot end
            synchronize(self.device)
            return work
        finally:
            if collects:
                gc.enable()
        return graph.replay
