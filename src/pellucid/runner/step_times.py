"""What steps take, measured at the start: from this follows how much guessing pays."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from pellucid.runner import device as device_api
from pellucid.runner.batch import StepRows
from pellucid.runner.executor import Executor
from pellucid.spec.length import StepTimes

# Steps of so many tokens are timed, each so many times; none larger than one that took so long,
# since what follows it is in proportion: a start should not wait for a large model.
MEASURED_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
MEASURED_TIMES = 4
LONG_SECONDS = 0.25


def measured(
    model: Executor,
    draft: Executor | None,
    *,
    room: int,
    vocab_size: int,
    block_size: int,
    device: torch.device,
) -> StepTimes:
    """What steps of a model take, and those of one that guesses.

    To be called before anybody holds a block. The two take turns, as they do in use: neither finds
    its weights in a cache. A step may have `room` tokens; they differ, as do the experts they go
    to. They are the first of a text, so they attend to next to nothing.
    """

    def step_of(rows: int) -> StepRows:
        return StepRows.of_text(np.arange(rows) % vocab_size, block_size)

    executors = [model] if draft is None else [model, draft]
    seconds: dict[Executor, dict[int, float]] = {executor: {} for executor in executors}
    sizes = [rows for rows in MEASURED_ROWS if rows <= room]
    for executor in executors:
        _timed(executor, step_of(1), device)  # the first of all meets cold memory
    # In turn: what disturbs one measurement is over by the next.
    for _ in range(MEASURED_TIMES):
        for rows in sizes:
            step = step_of(rows)
            for executor, known in seconds.items():
                known[rows] = min(known.get(rows, math.inf), _timed(executor, step, device))
            if seconds[model][rows] > LONG_SECONDS:
                sizes = [size for size in sizes if size <= rows]
                break
    return StepTimes(seconds[model], None if draft is None else seconds[draft])


def _timed(executor: Executor, step: StepRows, device: torch.device) -> float:
    """Seconds of a step all of whose tokens are sampled behind."""
    wanted = step.positions
    begin = time.perf_counter()
    if executor.likeliest(step, wanted) is None:
        executor.launch(step, wanted).logits(0, len(wanted))
    device_api.synchronize(device)
    return time.perf_counter() - begin
