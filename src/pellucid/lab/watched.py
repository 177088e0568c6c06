"""The process that `footprint.run_apart` starts: an engine that is looked at while it works."""

from __future__ import annotations

import sys
import time

import msgspec
import torch

from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.errors import PellucidError
from pellucid.kernels.dispatch import select_ops
from pellucid.lab.drive import greedy
from pellucid.lab.footprint import Footprint, Sample, Task, Usage, resident, usage
from pellucid.lab.subject import RANDOM_MODEL
from pellucid.models.base import Model
from pellucid.models.registry import build_model, random_weights
from pellucid.runner.device import pick_dtype
from pellucid.runner.native_executor import NativeExecutor
from pellucid.runner.torch_runner import TorchRunner


class WatchedRunner(TorchRunner):
    """Looks at the process when the weights are there and the KV pool is not."""

    loaded: Usage

    def _take_memory(self, config: EngineConfig) -> None:
        self.loaded = usage()
        super()._take_memory(config)

    def arena_bytes(self) -> int:
        """Of activations; 0 where kernels have no arena."""
        executor = self._executor
        return executor._program.arena_bytes if isinstance(executor, NativeExecutor) else 0

    def kv_resident(self) -> int:
        """Bytes of the pool that the system has backed."""
        tensors = [t for kv in self._kv for t in (kv.k, kv.v, kv.k_scale, kv.v_scale)]
        return sum(resident(t.data_ptr(), t.nbytes) for t in tensors if t is not None)


def measure(task: Task) -> Footprint:
    """Make the engine, run the requests, and look at the process on the way."""
    config = task.config
    select_ops(config.runner.kernels, torch.device("cpu"))  # its libraries are loaded with the rest
    start = usage()
    runner = WatchedRunner(config, model=_random_model(config) if task.random else None)
    core = EngineCore(runner, config.cache, config.scheduler)
    ready, ready_kv = usage(), runner.kv_resident()
    samples = _answer(core, runner, task)
    info, arena_bytes = core.info, runner.arena_bytes()
    runner.close()
    return Footprint(
        start=start,
        loaded=runner.loaded,
        ready=ready,
        ready_kv=ready_kv,
        kernels=info.kernels,
        weight_bytes=info.weight_bytes,
        arena_bytes=arena_bytes,
        num_blocks=info.num_kv_blocks,
        block_size=info.block_size,
        block_bytes=info.kv_block_bytes,
        samples=samples,
    )


def _random_model(config: EngineConfig) -> Model:
    device, length = torch.device("cpu"), config.model.max_model_len
    ops = select_ops(config.runner.kernels, device, RANDOM_MODEL.head_dim)
    dtype = pick_dtype(config.model.dtype, device)
    return build_model(RANDOM_MODEL, random_weights(RANDOM_MODEL), ops, dtype, device, length)


def _answer(core: EngineCore, runner: WatchedRunner, task: Task) -> list[Sample]:
    """Looks at the process while the task's requests, which come all at once, are served."""
    for index, (prompt, answer) in enumerate(zip(task.prompts, task.answers, strict=True)):
        core.add(greedy(str(index), prompt, answer))
    begin, steps = time.perf_counter(), 0
    samples = [_sample(core, runner.kv_resident(), 0.0)]
    while core.has_work:
        for delta in core.step().deltas:
            if delta.error is not None:
                raise PellucidError(f"the engine refused a request: {delta.error}")
        steps += 1
        if steps % task.every == 0 or not core.has_work:
            samples.append(_sample(core, runner.kv_resident(), time.perf_counter() - begin))
    return samples


def _sample(core: EngineCore, kv_resident: int, seconds: float) -> Sample:
    running = list(core.scheduler.running.values())
    size = core.info.block_size
    return Sample(
        seconds=seconds,
        usage=usage(),
        kv_resident=kv_resident,
        running=len(running),
        blocks=core.scheduler.kv.num_used,
        # The newest token has no place yet where its block is still to be taken.
        tokens=sum(min(one.num_tokens, size * len(one.block_table)) for one in running),
    )


def main() -> None:
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    sys.stdout.buffer.write(msgspec.json.encode(measure(task)))


if __name__ == "__main__":
    main()
