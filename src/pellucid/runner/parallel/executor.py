"""Rank 0's executor: it tells the workers whatever it is asked, and then does it itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pellucid.runner.batch import Ints, StepRows
from pellucid.runner.executor import Executor, Forward, Likeliest
from pellucid.runner.parallel.collectives import ProcessRanks
from pellucid.runner.parallel.messages import Hidden, Logits, Remember, Step
from pellucid.runner.parallel.workers import Workers
from pellucid.sample.backends import Sampler


class ParallelExecutor:
    """Implements `Executor` over that of rank 0's own shard. Waits until all workers are ready."""

    def __init__(self, executor: Executor, workers: Workers, ranks: ProcessRanks) -> None:
        self.sampler: Sampler[Any] = executor.sampler
        self._executor = executor
        self._workers = workers
        self._ranks = ranks
        workers.wait_until_ready()

    def launch(self, step: StepRows, wanted: Ints) -> Forward:
        with self._workers.watched():
            self._workers.tell(Step.of(step, wanted))
            return ParallelForward(self._executor.launch(step, wanted), self._workers)

    def likeliest(self, step: StepRows, wanted: Ints) -> Likeliest | None:
        return None

    def hidden(self, step: StepRows, wanted: Ints) -> Tensor:
        with self._workers.watched():
            self._workers.tell(Hidden(Step.of(step, wanted)))
            return self._executor.hidden(step, wanted)

    def remember(self, rows: Ints, token_ids: Tensor) -> None:
        with self._workers.watched():
            self._workers.tell(Remember(rows.tobytes()))
            self._executor.remember(rows, self._ranks.told(token_ids.contiguous()))

    def close(self) -> None:
        self._executor.close()
        self._workers.hang_up()
        self._ranks.leave(as_last=self._workers.has_lost)
        self._workers.stop()


class ParallelForward:
    """Implements `Forward`."""

    def __init__(self, forward: Forward, workers: Workers) -> None:
        self._forward = forward
        self._workers = workers

    def logits(self, begin: int, end: int) -> Any:
        with self._workers.watched():
            self._workers.tell(Logits(begin, end))
            return self._forward.logits(begin, end)
