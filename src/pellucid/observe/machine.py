"""Processor and memory, of the machine and of our two processes: for Prometheus and the page."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping

import msgspec
import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class MachineCollector(Collector):
    """Reads at every scrape.

    Args:
        engine_pids: process ids of the engines as they are now, by their model's name; ours if an
            engine runs in this process.
    """

    def __init__(self, engine_pids: Callable[[], Mapping[str, int]]) -> None:
        self._engine_pids = engine_pids
        psutil.cpu_percent()  # starts the interval that the first reading ends

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "pellucid_machine_cpu_percent",
            "Processors in use since the reading before, 0 to 100.",
            value=psutil.cpu_percent(),
        )
        yield GaugeMetricFamily(
            "pellucid_machine_memory_percent",
            "Memory in use, 0 to 100.",
            value=psutil.virtual_memory().percent,
        )
        yield from self._processes()

    def _processes(self) -> Iterator[Metric]:
        labels = ["process", "model_name"]
        cpu = CounterMetricFamily(
            "pellucid_process_cpu_seconds", "Processor time of a process.", labels=labels
        )
        memory = GaugeMetricFamily(
            "pellucid_process_resident_memory_bytes", "Memory of a process.", labels=labels
        )
        threads = GaugeMetricFamily(
            "pellucid_process_threads", "Threads of a process.", labels=labels
        )
        pids = {("frontend", ""): os.getpid()}
        for model, pid in self._engine_pids().items():
            if pid != os.getpid():  # otherwise it is counted as the front end
                pids["engine", model] = pid
        for name, pid in pids.items():
            try:
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    cpu.add_metric(name, times.user + times.system)
                    memory.add_metric(name, process.memory_info().rss)
                    threads.add_metric(name, process.num_threads())
            except psutil.Error:  # it has just died
                continue
        yield from (cpu, memory, threads)


class ProcessReading(msgspec.Struct):
    """One of our processes."""

    name: str  # frontend, or the engine's model
    cpu_percent: float  # 100 is one core
    memory_bytes: int  # resident


class GpuReading(msgspec.Struct):
    """The first GPU that this process may see."""

    busy_percent: float
    memory_bytes: int
    memory_total: int


class Reading(msgspec.Struct, omit_defaults=True):
    """The machine since the reading before, and now."""

    cpu_percent: float  # of all cores
    num_cores: int
    memory_bytes: int  # in use
    memory_total: int
    processes: list[ProcessReading]
    gpu: GpuReading | None = None


class Meter:
    """Reads at most once in `interval` seconds, whoever asks; the first reading has no interval."""

    def __init__(self, interval: float = 1.0) -> None:
        self._interval = interval
        self._read_at = 0.0
        self._reading: Reading | None = None
        self._cpu = (0.0, 0.0)  # seconds of all cores: busy, in all
        self._processes: dict[int, psutil.Process] = {}

    def read(self, engine_pids: Mapping[str, int], *, has_gpu: bool = False) -> Reading:
        """The same object until there is a new reading.

        Args:
            engine_pids: see `MachineCollector`.
            has_gpu: an engine computes on one.
        """
        now = time.monotonic()
        if self._reading is None or now - self._read_at >= self._interval:
            self._read_at = now
            memory = psutil.virtual_memory()
            self._reading = Reading(
                self._cpu_percent(),
                psutil.cpu_count() or 1,
                memory.total - memory.available,
                memory.total,
                list(self._read_processes(engine_pids)),
                read_gpu() if has_gpu else None,
            )
        return self._reading

    def _cpu_percent(self) -> float:
        # psutil.cpu_percent() keeps one interval for a whole process: /metrics would share it.
        times = psutil.cpu_times()
        whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        busy = whole - times.idle - getattr(times, "iowait", 0.0)
        before, self._cpu = self._cpu, (busy, whole)
        passed = whole - before[1]
        return round(100 * (busy - before[0]) / passed, 1) if passed > 0 else 0.0

    def _read_processes(self, engine_pids: Mapping[str, int]) -> Iterator[ProcessReading]:
        pids = {os.getpid(): "frontend"}
        for model, pid in engine_pids.items():
            pids.setdefault(pid, model)
        self._processes = {pid: known for pid, known in self._processes.items() if pid in pids}
        for pid, name in pids.items():
            try:
                process = self._processes.setdefault(pid, psutil.Process(pid))
                with process.oneshot():
                    yield ProcessReading(name, process.cpu_percent(), process.memory_info().rss)
            except psutil.Error:  # it has just died
                continue


def read_gpu() -> GpuReading | None:
    """None without NVIDIA's management library, its Python binding (extra `gpu`), or a GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()  # counted: cheap after the first time
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        busy = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
    except ImportError:
        return None
    except pynvml.NVMLError:
        return None
    return GpuReading(float(busy), int(memory.used), int(memory.total))
