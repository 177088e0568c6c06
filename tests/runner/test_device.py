"""What the machine offers, read from files that stand for a container's."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from pellucid.config import EngineConfig
from pellucid.errors import ConfigError
from pellucid.runner import device

CPU = torch.device("cpu")


@pytest.fixture
def groups(tmp_path, monkeypatch) -> list[Path]:
    """Two nested cgroups without limits."""
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.setattr(device, "_own_cgroups", lambda: [inner, tmp_path])
    return [inner, tmp_path]


def test_memory_is_the_machines_without_a_limit(groups):
    (groups[0] / "memory.max").write_text("max\n")
    (groups[0] / "memory.current").write_text("12345\n")
    found = device.available_memory(CPU)
    assert abs(found - psutil.virtual_memory().available) < 1 << 30


def test_the_tightest_memory_limit_counts_and_file_cache_does_not(groups):
    for group, limit in zip(groups, (4_000_000, 3_000_000), strict=True):
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text("2500000\n")
        (group / "memory.stat").write_text("anon 1500000\ninactive_file 1000000\n")
    assert device.available_memory(CPU) == 1_500_000


@pytest.mark.parametrize(("quota", "cpus"), [("max 100000", None), ("150000 100000", 1)])
def test_threads_follow_affinity_and_quota(groups, quota, cpus):
    (groups[1] / "cpu.max").write_text(quota)
    allowed = len(os.sched_getaffinity(0))
    threads = device.compute_threads()
    assert 1 <= threads <= allowed
    assert cpus is None or threads == cpus


def test_one_cpu_of_affinity_means_one_thread(groups):
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert device.compute_threads() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_auto_dtype_is_bfloat16_exactly_where_the_cpu_computes_in_it(monkeypatch):
    monkeypatch.setattr(device, "instruction_sets", lambda: ["avx2", "avx512_bf16"])
    assert device.pick_dtype("auto", CPU) is torch.bfloat16
    monkeypatch.setattr(device, "instruction_sets", lambda: ["avx2", "avx512f"])
    assert device.pick_dtype("auto", CPU) is torch.float32
    assert device.pick_dtype("float16", CPU) is torch.float16


@pytest.mark.parametrize(
    ("name", "model", "kernels", "plain_keys", "dtype"),
    [
        ("auto", "auto", "native", True, torch.int8),
        ("auto", "auto", "native", False, device.pick_dtype("auto", CPU)),
        ("auto", "auto", "reference", True, device.pick_dtype("auto", CPU)),
        ("auto", "float32", "native", True, torch.float32),  # who asks for a type means all of it
        ("float16", "auto", "native", True, torch.float16),
        ("int8", "float32", "reference", False, torch.int8),
    ],
)
def test_keys_and_values_are_int8_where_that_does(name, model, kernels, plain_keys, dtype):
    config = EngineConfig.of(kv_cache_dtype=name, dtype=model)
    assert device.pick_kv_dtype(config, CPU, kernels, plain_keys) is dtype


def test_a_gpu_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.pick_device("auto") == CPU
    with pytest.raises(ConfigError, match="cuda:1") as caught:
        device.pick_device("cuda:1")
    assert caught.value.param == "device"


def test_memory_of_a_gpu_is_what_is_free_once_the_allocator_gave_back(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("emptied"))
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda _: (calls.append("asked"), (7 << 30, 9 << 30))[1]
    )
    assert device.available_memory(torch.device("cuda")) == 7 << 30
    assert calls == ["emptied", "asked"]


def test_memory_is_told_without_psutil(groups, monkeypatch) -> None:
    found = device.available_memory(CPU)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert abs(device.available_memory(CPU) - found) < found
    assert device.resident_memory() == 0


def test_what_is_fetched_arrives_as_arrays() -> None:
    ids, failed = device.Fetched([torch.tensor([3, 1]), torch.tensor([True, False])]).wait()
    assert (ids.tolist(), failed.tolist()) == ([3, 1], [True, False])


def test_only_a_gpu_records() -> None:
    assert device.graph_recorder(CPU) is None


class FakeCuda:
    """Notes what is asked of `torch.cuda`, and what runs meanwhile."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.inside: list[str] = []

    def within(self, name: str) -> AbstractContextManager[None]:
        @contextmanager
        def entered() -> Iterator[None]:
            self.inside.append(name)
            yield
            self.inside.remove(name)

        return entered()

    def graph(self, graph: object, **how: object) -> AbstractContextManager[None]:
        assert not gc.isenabled(), "it could end another graph meanwhile"
        return self.within(f"capture {how['pool']} {how['stream']}")

    def stream_named(self, name: str) -> SimpleNamespace:
        return FakeStream(self, name)


class FakeStream(SimpleNamespace):
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        super().__init__(wait_stream=lambda other: cuda.notes.append(f"{name} waits for {other}"))
        self.label = name

    def __str__(self) -> str:
        return str(self.label)


def test_graphs_are_recorded_after_a_first_run_on_the_same_stream_and_pool(monkeypatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "Stream", lambda: cuda.stream_named("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: cuda.stream_named("main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: cuda.within(str(stream)))
    monkeypatch.setattr(torch.cuda, "graph", cuda.graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay="replay"))
    graphs = device.CudaGraphs()
    for _ in range(2):
        replay = graphs.record(lambda: cuda.notes.append(f"run in {cuda.inside}"))
        assert replay == "replay"
    assert cuda.notes == 2 * [
        "side waits for main",
        "run in ['side']",
        "main waits for side",
        "run in ['capture pool side']",
    ]
    assert gc.isenabled()

    def fails() -> None:
        if "side" not in cuda.inside:
            raise RuntimeError("out of memory")

    streams: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    with pytest.raises(RuntimeError):
        graphs.record(fails)
    assert gc.isenabled()
    assert list(map(str, streams)) == ["main"], "what comes next is not launched on the side"


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with device.without_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_memory_that_did_not_suffice_is_seen_behind_what_came_of_it(link: str) -> None:
    error = ValueError("of what was undone meanwhile")
    assert not device.is_out_of_memory(error)
    setattr(error, link, torch.OutOfMemoryError("no room"))
    assert device.is_out_of_memory(error)


def test_quotas_of_the_groups_around_this_process_hold_for_it(tmp_path, monkeypatch) -> None:
    read = device._read
    own = Path("/proc/self/cgroup")
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    monkeypatch.setattr(device, "_read", lambda path: "0::/a/b" if path == own else read(path))
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "cpu.max").write_text("100000 100000")
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000")
    assert device.compute_threads() == 1


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine that has them; which were made the current one."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_rank_has_the_gpu_of_its_number(two_gpus: list[torch.device], name: str) -> None:
    found = [device.pick_rank_device(name, rank, 2) for rank in range(2)]
    assert found == two_gpus == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert device.pick_rank_device("cpu", 1, 2) == CPU


def test_one_rank_has_the_device_that_is_named(two_gpus: list[torch.device]) -> None:
    assert device.pick_rank_device("cuda", 0, 1) == torch.device("cuda")
    assert two_gpus == []
    assert device.pick_rank_device("cuda:1", 0, 1) == torch.device("cuda:1")
    assert two_gpus == [torch.device("cuda:1")]


@pytest.mark.parametrize(
    ("name", "size", "param", "words"),
    [
        ("cuda", 3, "tensor_parallel_size", "3 .*torch sees 2"),
        ("cuda:1", 2, "device", "cuda:1"),
        ("cuda:2", 2, "device", "cuda:2"),
    ],
)
def test_gpus_that_are_not_there_are_refused(
    two_gpus: list[torch.device], name: str, size: int, param: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        device.pick_rank_device(name, 0, size)
    assert caught.value.param == param
