"""An engine in a process of its own, which tells what memory it takes while it works.

`python -m pellucid.lab.watched` reads a Task as JSON and writes a Footprint. A fresh process,
because memory that something else took and gave back is kept by malloc and would be counted to
whoever needs it next. Needs Linux: /proc/self/smaps_rollup and pagemap.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np

from pellucid.config import EngineConfig
from pellucid.errors import ConfigError, PellucidError

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
        [sys.executable, "-m", "pellucid.lab.watched"],
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
