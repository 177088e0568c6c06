"""What the page is told of the machine, against what the system says of this process."""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pellucid.observe.machine import Meter, read_gpu


def test_a_busy_process_is_seen_as_busy() -> None:
    meter = Meter(interval=0.0)
    meter.read({})
    begin, spent = time.process_time(), 0.0
    while spent < 0.2:
        spent = time.process_time() - begin
    reading = meter.read({"model": os.getpid()})
    (own,) = reading.processes  # one that is engine and front end is one process
    assert own.name == "frontend"
    assert own.cpu_percent > 1
    rss = psutil.Process().memory_info().rss
    assert own.memory_bytes == pytest.approx(rss, rel=0.5)
    assert 0 < reading.cpu_percent <= 100
    assert reading.num_cores == os.cpu_count()
    assert reading.memory_total == psutil.virtual_memory().total
    assert reading.gpu is None


def test_it_reads_once_in_a_while_and_leaves_out_the_dead() -> None:
    meter = Meter(interval=60.0)
    reading = meter.read({"gone": 2**22 + 1})
    assert [one.name for one in reading.processes] == ["frontend"]
    assert meter.read({}) is reading


def test_a_gpu_is_read_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    memory, rates = SimpleNamespace(used=3, total=9), SimpleNamespace(gpu=42)
    library: Any = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: memory,
        nvmlDeviceGetUtilizationRates=lambda handle: rates,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    gpu = Meter().read({}, has_gpu=True).gpu
    assert gpu is not None
    assert (gpu.busy_percent, gpu.memory_bytes, gpu.memory_total) == (42, 3, 9)

    def refuse() -> None:
        raise NVMLError

    library.nvmlInit = refuse
    assert read_gpu() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert read_gpu() is None
