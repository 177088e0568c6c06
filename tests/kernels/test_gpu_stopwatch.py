"""The order of what is given to a GPU to time work, on a pretended one."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pellucid.kernels import gpu


class Gpu:
    """Writes down what it is given; its clock advances by 2 ms with each replay or run."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.now = 0.0
        self.can_record = True
        self.recording = False

    def work(self) -> None:
        if self.recording and not self.can_record:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.log.append("work")
        self.now += 0 if self.recording else 2.0

    def module(self) -> SimpleNamespace:
        me = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                me.log.append("event")
                self.at = me.now

            def elapsed_time(self, other: Any) -> float:
                return other.at - self.at

        class Graph:
            def replay(self) -> None:
                me.log.append("replay")
                me.now += 2.0

        @contextmanager
        def capture(graph: Graph) -> Iterator[None]:
            me.recording = True
            try:
                yield
            finally:
                me.recording = False

        @contextmanager
        def on(stream: Any) -> Iterator[None]:
            yield

        stream = SimpleNamespace(wait_stream=lambda other: None)
        return SimpleNamespace(
            Event=Event,
            CUDAGraph=Graph,
            graph=capture,
            stream=on,
            Stream=lambda: stream,
            current_stream=lambda: stream,
            set_stream=lambda to: me.log.append("own stream" if to is stream else "another"),
            synchronize=lambda device: me.log.append("wait"),
            get_device_properties=lambda device: SimpleNamespace(L2_cache_size=1 << 10),
        )


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    pretended = Gpu()
    flushed = SimpleNamespace(zero_=lambda: pretended.log.append("flush"))
    monkeypatch.setattr(gpu.torch, "cuda", pretended.module())
    monkeypatch.setattr(gpu.torch, "empty", lambda size, **_: flushed)
    return pretended


@pytest.mark.parametrize("can_record", [True, False])
def test_a_replayed_graph_is_timed_between_events_behind_a_flush(
    pretended: Gpu, can_record: bool
) -> None:
    pretended.can_record = can_record
    watch = gpu.Stopwatch(torch.device("cuda"), seconds=0.0)
    assert watch.median(pretended.work) == pytest.approx(2e-3)
    run = "replay" if can_record else "work"
    timed = ["flush", "event", run, "event"] * gpu.FEWEST_RUNS
    assert pretended.log[-len(timed) - 1 :] == [*timed, "wait"]
    restored = [] if can_record else ["own stream"]  # a capture that fails leaves another one
    assert [entry for entry in pretended.log if entry.endswith(("stream", "another"))] == restored


def test_work_that_waits_is_timed_as_it_is(pretended: Gpu) -> None:
    watch = gpu.Stopwatch(torch.device("cuda"), seconds=0.0)
    assert watch.median(pretended.work, replay=False) == pytest.approx(2e-3)
    assert "replay" not in pretended.log
    pretended.log.clear()
    assert watch.elapsed(pretended.work) >= 0
    assert pretended.log[-3:] == ["wait", "work", "wait"]


def test_small_work_is_timed_many_at_once_and_nothing_is_collected_meanwhile(
    pretended: Gpu,
) -> None:
    watch = gpu.Stopwatch(torch.device("cuda"), seconds=0.0)
    assert watch.num_copies(1) == gpu.MOST_COPIES
    assert watch.num_copies(gpu.FLUSH_BYTES // 3) == 3
    assert watch.num_copies(gpu.FLUSH_BYTES * 2) == 1
    collected: list[bool] = []

    def work() -> None:
        if pretended.recording:
            collected.append(gc.isenabled())
        pretended.work()

    assert watch.median([work] * 4) == pytest.approx(2e-3 / 4)
    assert collected == [False] * 4
    assert gc.isenabled()
