"""The servers of the `ladder` experiment: each is the one before it and one idea more.

All serve the same requests as they arrive, with real computation in this process, and stream their
tokens; they differ in how they are made and in nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pellucid.engine.core import EngineCore
from pellucid.errors import ConfigError
from pellucid.lab.drive import Served, greedy, serve
from pellucid.lab.subject import Subject
from pellucid.runner.base import KVCapacity, PendingStep, Runner, StepPlan, StepResult

if TYPE_CHECKING:
    from pellucid.lab.padded import Kept, PaddedBatches

FIRST = "0 load each"
NATIVE = "8 native"  # the rung that does not promise the text of those below
RUNGS = {
    FIRST: "A script: the model is loaded for every request. Each token computes all text"
    " before it again. Who finds it busy comes again later.",
    "1 load once": "The model stays loaded.",
    "2 queue": "Who finds it busy waits in line, first come, first served.",
    "3 static": "All who wait, up to the seats, are one batch, padded to the longest prompt and"
    " answer.",
    "4 prefix": "Keys and values of what all prompts begin with are kept; what follows is still"
    " computed again for every token.",
    "5 KV cache": "Keys and values of all text are kept, in room for the longest text per seat.",
    "6 continuous": "The engine's scheduler: a seat is free when its answer ends; no padding.",
    "7 paged": "The same memory in blocks that are taken as texts grow, so more seats; long"
    " prompts in chunks.",
    NATIVE: "C++ kernels on the file's integers instead of torch.",
}
WHY_NOT_SPECULATION = (
    "Speculation (--speculative) is no rung: what it gains depends on how much a text"
    " repeats, and these prompts are random."
)


@dataclass(frozen=True, slots=True)
class Size:
    """What the servers are made for."""

    requests: int
    seats: int  # how many of the longest texts the KV memory holds
    longest: int  # prompt plus answer, in tokens
    budget: int  # tokens of a step in chunks
    retry: float  # seconds until a client who was sent away comes again


@dataclass(frozen=True, slots=True)
class Job:
    """A request; `arrival` in seconds since the load began."""

    arrival: float
    prompt: list[int]
    answer: int


@dataclass(slots=True)
class Outcome:
    """What became of a load; parallel to its jobs. `wasted` positions are part of `positions`."""

    served: list[Served]
    positions: int = 0
    wasted: int = 0
    computing: float = 0.0  # seconds in steps of the model

    @property
    def seconds(self) -> float:
        return max(one.finished for one in self.served)


class Server(Protocol):
    def serve(self, jobs: Sequence[Job]) -> Outcome:
        """Answer all jobs, which are in the order of their arrival."""
        ...


Serve = Callable[[Sequence[Job]], Outcome]


@dataclass(slots=True)
class BatchServer:
    """Takes whom it finds waiting, up to `seats`, and takes nobody else until all are answered.

    `make` gives what computes; with `reload` it is made, model and all, for every batch. Without a
    `queue` a client who finds the server busy is sent away and knocks again every `retry` seconds.
    """

    make: Callable[[], PaddedBatches]
    seats: int = 1
    reload: bool = False
    queue: bool = True
    retry: float = 0.0

    def serve(self, jobs: Sequence[Job]) -> Outcome:
        outcome = Outcome([Served(job.arrival) for job in jobs])
        batches = None if self.reload else self.make()
        begin = time.monotonic()
        left = list(range(len(jobs)))
        while left:
            chosen = self._choose(jobs, left, begin)
            scheduled = time.monotonic() - begin
            used = batches or self.make()
            before = used.positions, used.wasted, used.seconds
            for index in chosen:
                left.remove(index)
                outcome.served[index].scheduled = scheduled
            self._answer(used, jobs, outcome.served, chosen, begin)
            outcome.positions += used.positions - before[0]
            outcome.wasted += used.wasted - before[1]
            outcome.computing += used.seconds - before[2]
        return outcome

    def _answer(
        self,
        batches: PaddedBatches,
        jobs: Sequence[Job],
        served: list[Served],
        chosen: list[int],
        begin: float,
    ) -> None:
        def told(row: int, token: int) -> None:
            one = served[chosen[row]]
            one.finished = time.monotonic() - begin  # until the next token
            one.token_ids.append(token)
            one.token_times.append(one.finished)

        batches.answer([jobs[i].prompt for i in chosen], [jobs[i].answer for i in chosen], told)

    def _choose(self, jobs: Sequence[Job], left: list[int], begin: float) -> list[int]:
        """Who is served next; waits until there is somebody."""
        now = time.monotonic() - begin
        if self.queue:
            wait, first = jobs[left[0]].arrival - now, left[0]
        else:
            first = min(left, key=lambda i: self._knock(jobs[i], now))
            wait = self._knock(jobs[first], now) - now
        if wait > 0:
            time.sleep(wait)
            now = time.monotonic() - begin
        if self.seats == 1:
            return [first]
        return [i for i in left if jobs[i].arrival <= now][: self.seats] or [first]

    def _knock(self, job: Job, now: float) -> float:
        """When this client asks next, at `now` or later."""
        missed = math.ceil(max(0.0, now - job.arrival) / self.retry)
        return job.arrival + missed * self.retry


@dataclass(slots=True)
class EngineServer:
    """The engine, whose scheduler decides at every step who is in it."""

    core: EngineCore
    counted: Counted = field(init=False)

    def __post_init__(self) -> None:
        self.core.runner = self.counted = Counted(self.core.runner)

    def serve(self, jobs: Sequence[Job]) -> Outcome:
        positions, seconds = self.counted.positions, self.counted.seconds
        requests = [greedy(str(i), job.prompt, job.answer) for i, job in enumerate(jobs)]
        served = serve(self.core, requests, [job.arrival for job in jobs])
        return Outcome(
            [served[str(i)] for i in range(len(jobs))],
            positions=self.counted.positions - positions,
            computing=self.counted.seconds - seconds,
        )


class Counted:
    """A runner with an account of what it computes. Implements `Runner` and `PendingStep`."""

    drafter = None

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._pending: PendingStep | None = None
        self._begin = 0.0
        self.info, self.close = runner.info, runner.close
        self.positions = 0
        self.seconds = 0.0

    def kv_capacity(self) -> KVCapacity:
        return self._runner.kv_capacity()

    def execute(self, plan: StepPlan) -> PendingStep:
        self._begin = time.perf_counter()
        self.positions += plan.num_tokens
        self._pending = self._runner.execute(plan)
        return self

    def result(self) -> StepResult:
        assert self._pending is not None
        result = self._pending.result()
        self.seconds += time.perf_counter() - self._begin
        return result


@contextmanager
def open_servers(size: Size, subject: Subject) -> Iterator[tuple[dict[str, Serve], list[str]]]:
    """`Server.serve` of each rung, and why some are missing."""
    import torch

    from pellucid.lab.padded import BLOCK_SIZE, PaddedBatches
    from pellucid.lab.torch_threads import on_threads
    from pellucid.runner import device

    longest, seats = size.longest, size.seats
    dtype = device.pick_dtype("auto", torch.device("cpu"))
    model = subject.reference(longest)

    def padded(kept: Kept, seats: int = 1) -> Callable[[], PaddedBatches]:
        return lambda: PaddedBatches(model, dtype, seats, longest, kept)

    def from_disk() -> PaddedBatches:
        return PaddedBatches(subject.reference(longest), dtype, 1, longest, "nothing")

    memory: dict[str, Any] = {
        "max_model_len": longest,
        "block_size": BLOCK_SIZE,
        "num_kv_blocks": seats * -(-longest // BLOCK_SIZE),
    }
    whole: dict[str, Any] = {"max_num_batched_tokens": seats * longest, "max_chunk_tokens": longest}
    budget = max(size.budget, 2 * size.requests)
    chunked: dict[str, Any] = {"max_num_seqs": size.requests, "max_num_batched_tokens": budget}
    engines = {
        "6 continuous": subject.engine(model=model, max_num_seqs=seats, **whole, **memory),
        "7 paged": subject.engine(model=model, **chunked, **memory),
    }
    notes = [
        f"Rungs 0 to 7 compute in {str(dtype).removeprefix('torch.')} with torch; rung 0 leaves out"
        " the start of a process, which would add seconds to every request.",
        WHY_NOT_SPECULATION,
    ]
    threads = dict.fromkeys(RUNGS, device.compute_threads())
    try:
        engines[NATIVE] = subject.engine(kernels="native", **chunked, **memory)
        threads[NATIVE] = torch.get_num_threads()  # as this engine wants it
    except ConfigError as error:
        notes.append(f"Rung {NATIVE} is missing: {error}.")
    retry = size.retry
    rungs: dict[str, Server] = {
        FIRST: BatchServer(from_disk, reload=True, queue=False, retry=retry),
        "1 load once": BatchServer(padded("nothing"), queue=False, retry=retry),
        "2 queue": BatchServer(padded("nothing")),
        "3 static": BatchServer(padded("nothing", seats), seats),
        "4 prefix": BatchServer(padded("prefix", seats), seats),
        "5 KV cache": BatchServer(padded("all", seats), seats),
    }
    rungs |= {name: EngineServer(core) for name, core in engines.items()}
    try:
        yield {name: on_threads(threads[name], one.serve) for name, one in rungs.items()}, notes
    finally:
        for core in engines.values():
            core.runner.close()
