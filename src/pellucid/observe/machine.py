"""Processor and memory, of the machine and of our two processes, for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

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
