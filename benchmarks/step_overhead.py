"""What a decode step costs outside the forward pass: planning, inputs, sampling, accounting.

One step of the default model on the native kernels takes a few milliseconds, so what Python does
around it counts. Medians over the steps of one run; the best of several runs.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks.engine_speed import GREEDY, MIXED, make_engine
from benchmarks.report import save
from pellucid.engine.core import EngineCore
from pellucid.messages import AddRequest, pack_tokens
from pellucid.sampling_params import SamplingParams

BATCHES = (1, 8, 32)
PROMPT = 64  # tokens
RUNS = 5
CASES = {
    "greedy": GREEDY,
    "temperature": SamplingParams(max_tokens=64, temperature=0.8, seed=1, ignore_eos=True),
    "mixed": MIXED,
}


class Stopwatch:
    """Adds up, by name, the seconds spent in functions that were put under it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Time every call of `owner.method`."""
        setattr(owner, method, self.timed(getattr(owner, method), name))

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds[name] += time.perf_counter() - begin

        return call


class TimedProgram:
    """Stands in for the native program, whose class has no room for another `run`."""

    def __init__(self, run: Callable[..., None]) -> None:
        self.run = run


def put_under(watch: Stopwatch, engine: EngineCore) -> None:
    """Time the parts of a step. What is not among them shows as `rest`."""
    runner: Any = engine.runner
    steps = runner._steps
    watch.watch(engine.scheduler, "schedule", "schedule")
    watch.watch(engine.scheduler, "update", "update")
    watch.watch(steps.batch, "gather", "gather")
    watch.watch(steps._sampling, "draw", "sample")
    executor = runner._executor
    executor._program = TimedProgram(watch.timed(executor._program.run, "forward"))


def decode_steps(
    engine: EngineCore, watch: Stopwatch, params: SamplingParams, batch: int
) -> list[dict[str, float]]:
    """Seconds by part of every step in which all of `batch` sequences got a token."""
    for index in range(batch):
        engine.add(
            AddRequest(
                request_id=f"s{index}",
                prompt=pack_tokens([(37 * index + k) % 40_000 + 100 for k in range(PROMPT)]),
                sampling=params,
                arrival_time=time.monotonic(),
            )
        )
    steps = []
    while engine.has_work:
        watch.seconds.clear()
        begin = time.perf_counter()
        stats = engine.step().stats
        total = time.perf_counter() - begin
        if stats.num_generated_tokens == batch and not stats.num_prompt_tokens:
            parts = dict(watch.seconds)
            steps.append({**parts, "rest": total - sum(parts.values()), "step": total})
    return steps


def medians(steps: list[dict[str, float]]) -> dict[str, float]:
    """Of each part in microseconds; `overhead` is all but the forward pass."""
    for step in steps:
        step["overhead"] = step["step"] - step["forward"]
    return {name: 1e6 * statistics.median(step[name] for step in steps) for name in steps[0]}


def main() -> None:
    engine, watch = make_engine({"kernels": "native"}), Stopwatch()
    put_under(watch, engine)
    results: dict[str, Any] = {}
    for name, params in CASES.items():
        for batch in BATCHES:
            runs = [medians(decode_steps(engine, watch, params, batch)) for _ in range(RUNS)]
            best = min(runs, key=lambda run: run["overhead"])
            results[f"{name}_batch_{batch}"] = best
            parts = ", ".join(
                f"{part} {best[part]:.0f}"
                for part in ("schedule", "gather", "sample", "update", "rest")
            )
            print(
                f"{name:11} batch {batch:2}: {best['overhead']:5.0f} us of {best['step']:6.0f} "
                f"({best['overhead'] / best['step']:5.1%}): {parts}"
            )
    save("step_overhead", results, unit="microseconds", prompt=PROMPT, runs=RUNS)
