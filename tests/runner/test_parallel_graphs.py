"""Recorded steps on two ranks, which are threads here: no CPU records what processes exchange."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pellucid.config import EngineConfig
from pellucid.kernels.ranks import ALONE
from pellucid.kernels.reference import ReferenceOps
from pellucid.load.random import RepeatedNoise
from pellucid.load.sharded import shard
from pellucid.models.registry import build_model
from pellucid.runner import graphs, torch_runner
from pellucid.runner.parallel.executor import ParallelExecutor
from pellucid.runner.parallel.worker import obey
from pellucid.runner.torch_runner import TorchRunner
from tests.models.test_parallel import Table, ThreadRanks
from tests.runner.driver import Driver
from tests.runner.test_graphs import PLAIN, make_jobs

CPU = torch.device("cpu")
SIZE = 2


class Repeating:
    """A recorder that calls what it was to record: first as `CudaGraphs` does, then to replay."""

    num_replayed = 0

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        function()

        def replay() -> None:
            Repeating.num_replayed += 1
            function()

        return replay


class Queued:
    """`Workers` of one thread."""

    has_lost = False

    def __init__(self) -> None:
        self.commands: queue.Queue[Any] = queue.Queue()
        self.tell = self.commands.put

    def watched(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def wait_until_ready(self) -> None:
        """A barrier in the first sum sees to that."""

    def hang_up(self) -> None:
        self.commands.put(None)

    def stop(self) -> None: ...


class Member(ThreadRanks):
    def leave(self, *, as_last: bool) -> None:
        """Threads have no connections."""


def runner_of(size: int, ranks: Any, lead: Any = lambda executor: executor) -> TorchRunner:
    ops = ReferenceOps()
    ops.ranks = ranks
    weights, own = shard(RepeatedNoise(PLAIN), PLAIN, ranks.rank, size)
    model = build_model(own, weights, ops, torch.float32, CPU)
    settings = {"device": "cpu", "dtype": "float32", "threads": 1, "num_kv_blocks": 120}
    config = EngineConfig.of(
        **settings, max_num_seqs=8, tensor_parallel_size=size, cuda_graphs=size > 1
    )
    return TorchRunner(config, model=model, ranks=ranks, lead=lead)


@pytest.fixture
def leader(monkeypatch: pytest.MonkeyPatch) -> Iterator[TorchRunner]:
    monkeypatch.setattr(graphs, "FIRST_CONTEXT", 64)
    monkeypatch.setattr(torch_runner.device_api, "graph_recorder", lambda device: Repeating())
    table, workers = Table(SIZE), Queued()
    first, second = (Member(rank, table) for rank in range(SIZE))

    def work() -> None:
        obey(iter(workers.commands.get, None), runner_of(SIZE, second), second)

    thread = threading.Thread(target=work)
    thread.start()
    runner = runner_of(SIZE, first, lambda e: ParallelExecutor(e, workers, first))
    yield runner
    runner.close()
    thread.join(30)
    assert not thread.is_alive()


def test_answers_are_those_of_one_rank_without_graphs(leader: TorchRunner) -> None:
    found = Driver(leader).run(make_jobs())
    expected = Driver(runner_of(1, ALONE)).run(make_jobs())
    for name, job in expected.items():
        assert found[name].tokens == job.tokens, name
        for mine, other in zip(found[name].logprobs, job.logprobs, strict=True):
            assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert Repeating.num_replayed > 20
