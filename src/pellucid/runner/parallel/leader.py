"""How rank 0 comes about: it starts the other ranks, loads its own shard, and leads them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pellucid.config import EngineConfig
from pellucid.load.hub import resolve
from pellucid.runner.executor import Executor
from pellucid.runner.parallel.collectives import ProcessRanks
from pellucid.runner.parallel.executor import ParallelExecutor
from pellucid.runner.parallel.workers import Workers
from pellucid.runner.torch_runner import TorchRunner


def start_ranks(config: EngineConfig, shape: str | None = None) -> TorchRunner:
    """The runner of rank 0, once all ranks are ready; see `TorchRunner` for `shape` and errors."""
    files = None if shape is not None else resolve(config.model)  # fetched once, for all
    folder = Path(tempfile.mkdtemp(prefix="pellucid-"))  # that nobody else may look into
    workers = Workers(config, shape, folder)
    size = config.runner.tensor_parallel_size
    ranks = ProcessRanks(0, size, folder, workers.wait_until_loaded)

    def lead(executor: Executor) -> Executor:
        return ParallelExecutor(executor, workers, ranks)

    try:
        with workers.watched():
            return TorchRunner(config, files, shape=shape, ranks=ranks, lead=lead)
    except BaseException:
        workers.stop(patience=0.0)
        ranks.leave(as_last=True)
        raise
