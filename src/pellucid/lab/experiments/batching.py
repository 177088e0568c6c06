"""Sequential, static and continuous batching of the same requests."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from pellucid.engine.core import EngineCore
from pellucid.lab.drive import greedy, serve
from pellucid.lab.experiment import Experiment, Lab
from pellucid.lab.fit import spread
from pellucid.lab.result import Figure, Findings, Series, Span, Table

STRATEGIES = ("sequential", "static", "continuous")


class Settings(msgspec.Struct, frozen=True):
    requests: int
    batch: int
    prompt: tuple[int, int]  # shortest and longest, in tokens
    mean_answer: int
    max_answer: int
    repeats: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    prompt: list[int]
    answer: int  # tokens that are wanted of it


@dataclass(frozen=True, slots=True)
class Outcome:
    """One strategy's run; times in seconds from its beginning, parallel to the jobs."""

    begins: list[float]
    useful: list[float]  # when the last wanted token was there
    ends: list[float]  # when its place was free again
    computed: int  # prompt and answer tokens, padding included

    @property
    def seconds(self) -> float:
        return max(self.ends)


def run(settings: Settings, lab: Lab) -> Findings:
    jobs = _jobs(settings, lab)
    longest = settings.prompt[1] + settings.max_answer
    core = lab.subject.engine(
        max_num_seqs=settings.batch, max_model_len=longest, prefix_caching=False
    )
    runs: dict[str, list[Outcome]] = {strategy: [] for strategy in STRATEGIES}
    rounds = [strategy for _ in range(settings.repeats) for strategy in STRATEGIES]
    try:
        _waves(core, jobs[: settings.batch], settings.batch)  # warm-up
        for strategy in lab.track(rounds, "runs"):
            if strategy == "continuous":
                outcome = _continuous(core, jobs)
            else:
                outcome = _waves(core, jobs, 1 if strategy == "sequential" else settings.batch)
            runs[strategy].append(outcome)
    finally:
        core.runner.close()
    return _findings(settings, jobs, runs)


def _jobs(settings: Settings, lab: Lab) -> list[Job]:
    """Prompts of uniform length; answers exponential, so that a few are long."""
    rng = np.random.default_rng(settings.seed)
    lengths = rng.integers(settings.prompt[0], settings.prompt[1] + 1, settings.requests)
    answers = rng.exponential(settings.mean_answer, settings.requests)
    answers = np.clip(answers.astype(int), 1, settings.max_answer)
    return [
        Job(lab.subject.prompt(int(length), settings.seed + index), int(answer))
        for index, (length, answer) in enumerate(zip(lengths, answers, strict=True))
    ]


def _waves(core: EngineCore, jobs: list[Job], size: int) -> Outcome:
    """Batches of `size`, padded to the longest prompt and run until the longest answer ends."""
    outcome = Outcome([], [], [], 0)
    clock, computed = 0.0, 0
    for start in range(0, len(jobs), size):
        wave = jobs[start : start + size]
        width, length = max(len(job.prompt) for job in wave), max(job.answer for job in wave)
        requests = [
            greedy(str(i), job.prompt[:1] * (width - len(job.prompt)) + job.prompt, length)
            for i, job in enumerate(wave)
        ]
        served = serve(core, requests)
        for index, job in enumerate(wave):
            outcome.begins.append(clock)
            outcome.useful.append(clock + served[str(index)].token_times[job.answer - 1])
        clock += max(one.finished for one in served.values())
        outcome.ends.extend([clock] * len(wave))
        computed += len(wave) * (width + length)
    return Outcome(outcome.begins, outcome.useful, outcome.ends, computed)


def _continuous(core: EngineCore, jobs: list[Job]) -> Outcome:
    """All at once to the scheduler, which fills a place as soon as it is free."""
    served = serve(core, [greedy(str(i), job.prompt, job.answer) for i, job in enumerate(jobs)])
    each = [served[str(i)] for i in range(len(jobs))]
    ends = [one.finished for one in each]
    return Outcome([one.scheduled for one in each], ends, ends, _wanted(jobs))


def _wanted(jobs: list[Job]) -> int:
    return sum(len(job.prompt) + job.answer for job in jobs)


def _findings(settings: Settings, jobs: list[Job], runs: dict[str, list[Outcome]]) -> Findings:
    answers = sum(job.answer for job in jobs)
    rows: list[list[str | float | None]] = []
    rates = {}
    for strategy, outcomes in runs.items():
        rate = rates[strategy] = spread([answers / one.seconds for one in outcomes])
        latencies = [latency for one in outcomes for latency in one.useful]
        waste = 1 - _wanted(jobs) / outcomes[0].computed
        row: list[str | float | None] = [strategy, rate.median, rate.low, rate.high]
        quantile = float(np.percentile(latencies, 95))
        rows.append([*row, statistics.mean(latencies), quantile, waste * 100])
    columns = ["batching", "wanted tokens/s", "least", "most", "mean latency s", "95% latency s"]
    columns.append("% of tokens wasted")
    bars = Series(
        name="wanted tokens/s",
        x=[float(i) for i in range(len(rows))],
        y=[rate.median for rate in rates.values()],
        low=[rate.low for rate in rates.values()],
        high=[rate.high for rate in rates.values()],
        style="bars",
    )
    return Findings(
        tables=[Table(f"{len(jobs)} requests that are all there at the start", columns, rows)],
        figures=[
            Figure(
                name="throughput",
                title="Throughput by batching",
                x_label="batching",
                y_label="wanted tokens/s",
                series=[bars],
                ticks=list(STRATEGIES),
            ),
            *(_timeline(strategy, runs[strategy][0]) for strategy in STRATEGIES),
        ],
        raw={
            "jobs": [[len(job.prompt), job.answer] for job in jobs],
            "runs": {name: msgspec.to_builtins(outcomes) for name, outcomes in runs.items()},
        },
        conclusion=_conclusion(rows, settings.batch),
    )


def _timeline(strategy: str, outcome: Outcome) -> Figure:
    spans = []
    for index, begin in enumerate(outcome.begins):
        lane = f"{index + 1}"
        spans.append(Span(lane, begin, outcome.useful[index], "answering"))
        if outcome.ends[index] > outcome.useful[index]:
            spans.append(Span(lane, outcome.useful[index], outcome.ends[index], "done, kept"))
    return Figure(
        name=f"timeline-{strategy}",
        title=f"Who is computed when: {strategy}",
        x_label="seconds",
        y_label="request",
        spans=spans,
    )


def _conclusion(rows: list[list[Any]], batch: int) -> list[str]:
    sequential, static, continuous = rows
    return [
        f"Continuous batching of {batch} brings {continuous[1] / sequential[1]:.2f} times the"
        f" wanted tokens per second of one after the other, and {continuous[1] / static[1]:.2f}"
        f" times those of static batches, which waste {static[6]:.0f}% of their tokens.",
        f"The mean latency is {sequential[4]:.2f} s sequential, {static[4]:.2f} s static and"
        f" {continuous[4]:.2f} s continuous; the lowest is that of"
        f" {min(rows, key=lambda row: row[4])[0]}.",
    ]


EXPERIMENT = Experiment(
    name="batching",
    question="What does continuous batching gain over static batches and over none?",
    hypothesis=(
        "Batches share each reading of the weights, so both beat one after the other; static ones"
        " compute padding until their longest answer ends, which continuous batching does not."
    ),
    method=(
        "The same requests, with exponential answer lengths, through the same engine: one at a"
        " time; in batches whose prompts are padded to the longest and whose answers all run as"
        " long as the longest; and all at once under the scheduler. Only wanted tokens count."
    ),
    quick=Settings(requests=16, batch=8, prompt=(8, 64), mean_answer=24, max_answer=96, repeats=1),
    full=Settings(
        requests=64, batch=16, prompt=(16, 256), mean_answer=64, max_answer=256, repeats=3
    ),
    run=run,
)
