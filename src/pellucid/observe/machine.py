"""Processor and memory, of the machine and of our two processes, for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class MachineCollector(Collector):
    """Reads at every scrape.

    Args:
        engine_pid: process id of the engine as it is now; ours if it runs in this process.
    """

    def __init__(self, engine_pid: Callable[[], int]) -> None:
        self._engine_pid = engine_pid
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
        cpu = CounterMetricFamily(
            "pellucid_process_cpu_seconds", "Processor time of a process.", labels=["process"]
        )
        memory = GaugeMetricFamily(
            "pellucid_process_resident_memory_bytes", "Memory of a process.", labels=["process"]
        )
        threads = GaugeMetricFamily(
            "pellucid_process_threads", "Threads of a process.", labels=["process"]
        )
        pids = {"frontend": os.getpid(), "engine": self._engine_pid()}
        for name, pid in pids.items():
            if name == "engine" and pid == pids["frontend"]:
                continue  # both in one: counted as the front end
            try:
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    cpu.add_metric([name], times.user + times.system)
                    memory.add_metric([name], process.memory_info().rss)
                    threads.add_metric([name], process.num_threads())
            except psutil.Error:  # it has just died
                continue
        yield from (cpu, memory, threads)
