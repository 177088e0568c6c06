"""An engine in a process of its own, which tells what memory it takes while it works.

`python -m pellucid.lab.footprint` reads a Task as JSON and writes a Footprint. A fresh process,
because memory that something else took and gave back is kept by malloc and would be counted to
whoever needs it next. Needs Linux: /proc/self/smaps_rollup and pagemap.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from pellucid.config import EngineConfig
from pellucid.errors import ConfigError, PellucidError

if TYPE_CHECKING:
    from pellucid.engine.core import EngineCore

ROLLUP = Path("/proc/self/smaps_rollup")
PAGEMAP = Path("/proc/self/pagemap")
PRESENT = 63  # the bit of a page that lies in memory


class Task(msgspec.Struct, frozen=True):
    """An engine, and requests that all arrive when it is ready."""

    config: EngineConfig
    random: bool  # the lab's tiny model of random weights, whatever `config` names
    prompts: list[list[int]]
    answers: list[int]  # tokens of each
    every: int  # steps from one sample to the next


class Usage(msgspec.Struct, frozen=True):
    """Bytes that the system counts to this process; `pss` shares what several processes map."""

    rss: int
    pss: int
    anonymous: int


class Sample(msgspec.Struct, frozen=True):
    """The engine between two steps."""

    seconds: float  # since the requests arrived
    usage: Usage
    kv_resident: int  # bytes of the pool that the system has backed
    running: int  # requests
    blocks: int  # that these hold
    tokens: int  # known ones, with a place in these blocks


class Footprint(msgspec.Struct, frozen=True):
    start: Usage  # interpreter and libraries
    loaded: Usage  # and weights
    ready: Usage  # and all that the engine takes before its first request
    ready_kv: int  # bytes of the pool that were backed by then
    kernels: str
    weight_bytes: int
    arena_bytes: int  # of activations; 0 where kernels have no arena
    num_blocks: int
    block_size: int
    block_bytes: int
    samples: list[Sample]


def check_system() -> None:
    """Raise ConfigError where the system does not tell what memory a process takes."""
    for path in (ROLLUP, PAGEMAP):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigError(f"memory: {path} cannot be read ({error.strerror})") from None


def run_apart(task: Task) -> Footprint:
    """Give `task` to a process of its own.

    Raises:
        PellucidError: it failed; the message is the last that it said.
    """
    child = subprocess.run(
        [sys.executable, "-m", __spec__.name],
        input=msgspec.json.encode(task),
        capture_output=True,
        check=False,
    )
    if child.returncode:
        last = child.stderr.decode(errors="replace").strip().splitlines() or ["no word"]
        raise PellucidError(f"the process that measures memory failed: {last[-1]}")
    return msgspec.json.decode(child.stdout, type=Footprint)


# ---- in the child


def usage() -> Usage:
    """Of this process, now."""
    sizes = {}
    for line in ROLLUP.read_text(encoding="ascii").splitlines()[1:]:
        name, value, *_ = line.split()
        sizes[name.rstrip(":")] = int(value) << 10
    return Usage(sizes["Rss"], sizes["Pss"], sizes["Anonymous"])


def resident(address: int, num_bytes: int) -> int:
    """Bytes of whole pages between `address` and its end that lie in memory.

    /proc/self/pagemap has 8 bytes per page (Linux: Documentation/admin-guide/mm/pagemap.rst).
    """
    first, last = address // mmap.PAGESIZE, -(-(address + num_bytes) // mmap.PAGESIZE)
    with PAGEMAP.open("rb", buffering=0) as file:
        file.seek(8 * first)
        entries = np.frombuffer(file.read(8 * (last - first)), np.uint64)
    return int(np.count_nonzero(entries >> np.uint64(PRESENT))) * mmap.PAGESIZE


def measure(task: Task) -> Footprint:
    """Make the engine, run the requests, and look at the process on the way."""
    import torch

    from pellucid.engine.core import EngineCore
    from pellucid.kernels.dispatch import select_ops
    from pellucid.lab.drive import greedy
    from pellucid.lab.subject import RANDOM_MODEL
    from pellucid.models.registry import build_model, random_weights
    from pellucid.runner import device as device_api
    from pellucid.runner.executor import NativeExecutor
    from pellucid.runner.torch_runner import TorchRunner

    class Watched(TorchRunner):
        """Looks at the process when the weights are there and the KV pool is not."""

        def _take_memory(self, config: EngineConfig) -> None:
            self.loaded = usage()
            super()._take_memory(config)

        def arena_bytes(self) -> int:
            executor = self._executor
            return executor._program.arena_bytes if isinstance(executor, NativeExecutor) else 0

        def kv_resident(self) -> int:
            tensors = [t for kv in self._kv for t in (kv.k, kv.v, kv.k_scale, kv.v_scale)]
            return sum(resident(t.data_ptr(), t.nbytes) for t in tensors if t is not None)

    config, device, model = task.config, torch.device("cpu"), None
    select_ops(config.runner.kernels, device)  # its libraries are loaded with the others
    start = usage()
    if task.random:
        ops = select_ops(config.runner.kernels, device, RANDOM_MODEL.head_dim)
        dtype, length = (
            device_api.pick_dtype(config.model.dtype, device),
            config.model.max_model_len,
        )
        weights = random_weights(RANDOM_MODEL)
        model = build_model(RANDOM_MODEL, weights, ops, dtype, device, length)
    runner = Watched(config, model=model)
    core = EngineCore(runner, config.cache, config.scheduler)
    ready, ready_kv = usage(), runner.kv_resident()
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
