"""Sequential, static and continuous batching of the same requests, with padding and without."""

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
from pellucid.lab.rectangles import Rectangles, open_engine
from pellucid.lab.result import Figure, Findings, Series, Span, Table

SEQUENTIAL, STATIC = "sequential", "static"
PADDED, PAGED = "continuous, padded", "continuous, paged"
STRATEGIES = (SEQUENTIAL, STATIC, PADDED, PAGED)

NOTE = (
    "Padding costs its positions here, and no memory: keys and values lie in blocks under all four"
    " strategies, and a real token's attention reads its own text alone. A server of rectangles"
    " would also hold, and read, contexts as long as the longest. No step cuts a prompt in chunks."
)


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


@dataclass(slots=True)
class Outcome:
    """One strategy's run; times in seconds from its beginning, parallel to the jobs."""

    begins: list[float]
    useful: list[float]  # when the last wanted token was there
    ends: list[float]  # when its place was free again
    texts: list[list[int]]  # the wanted tokens
    computed: int = 0  # positions, padding and what nobody wanted included

    @property
    def seconds(self) -> float:
        return max(self.ends)


def run(settings: Settings, lab: Lab) -> Findings:
    jobs = _jobs(settings, lab)
    widest = settings.prompt[1]
    core, runner = open_engine(lab.subject, settings.batch, widest + settings.max_answer, widest)
    runs: dict[str, list[Outcome]] = {strategy: [] for strategy in STRATEGIES}
    rounds = [strategy for _ in range(settings.repeats) for strategy in STRATEGIES]
    try:
        for strategy in (PADDED, PAGED):  # warm-up
            _serve(strategy, core, runner, jobs[: settings.batch], settings.batch)
        for strategy in lab.track(rounds, "runs"):
            runs[strategy].append(_serve(strategy, core, runner, jobs, settings.batch))
    finally:
        runner.close()
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


def _serve(
    strategy: str, core: EngineCore, runner: Rectangles, jobs: list[Job], batch: int
) -> Outcome:
    runner.padded = strategy in (STATIC, PADDED)
    before = runner.positions
    if strategy in (SEQUENTIAL, STATIC):
        outcome = _waves(core, jobs, 1 if strategy == SEQUENTIAL else batch)
    else:
        outcome = _continuous(core, jobs)
    outcome.computed = runner.positions - before
    return outcome


def _waves(core: EngineCore, jobs: list[Job], size: int) -> Outcome:
    """Batches of `size`, in which all run until the longest answer ends."""
    outcome = Outcome([], [], [], [])
    clock = 0.0
    for start in range(0, len(jobs), size):
        wave = jobs[start : start + size]
        length = max(job.answer for job in wave)
        requests = [greedy(str(i), job.prompt, length) for i, job in enumerate(wave)]
        served = serve(core, requests)
        for index, job in enumerate(wave):
            one = served[str(index)]
            outcome.begins.append(clock)
            outcome.useful.append(clock + one.token_times[job.answer - 1])
            outcome.texts.append(one.token_ids[: job.answer])
        clock += max(one.finished for one in served.values())
        outcome.ends.extend([clock] * len(wave))
    return outcome


def _continuous(core: EngineCore, jobs: list[Job]) -> Outcome:
    """All at once to the scheduler, which fills a place as soon as it is free."""
    served = serve(core, [greedy(str(i), job.prompt, job.answer) for i, job in enumerate(jobs)])
    each = [served[str(i)] for i in range(len(jobs))]
    ends = [one.finished for one in each]
    return Outcome([one.scheduled for one in each], ends, ends, [one.token_ids for one in each])


def _wanted(jobs: list[Job]) -> int:
    """Positions that must be computed: of every token but the last of an answer."""
    return sum(len(job.prompt) + job.answer - 1 for job in jobs)


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
        row += [statistics.mean(latencies), quantile, outcomes[0].computed, waste * 100]
        rows.append([*row, _same(outcomes, runs[SEQUENTIAL])])
    columns = ["batching", "wanted tokens/s", "least", "most", "mean latency s", "95% latency s"]
    columns += ["positions computed", "% of them wasted", "text of sequential"]
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
                y_label="wanted tokens/s (median, range)",
                series=[bars],
                ticks=list(STRATEGIES),
            ),
            *(_timeline(strategy, runs[strategy][0]) for strategy in STRATEGIES),
        ],
        raw={
            "jobs": [[len(job.prompt), job.answer] for job in jobs],
            "runs": {name: msgspec.to_builtins(outcomes) for name, outcomes in runs.items()},
        },
        notes=[NOTE],
        conclusion=_conclusion(rows, settings.batch),
    )


def _same(made: list[Outcome], first: list[Outcome]) -> str:
    return "yes" if all(one.texts == first[0].texts for one in made) else "no"


def _timeline(strategy: str, outcome: Outcome) -> Figure:
    spans = []
    for index, begin in enumerate(outcome.begins):
        lane = f"{index + 1}"
        spans.append(Span(lane, begin, outcome.useful[index], "answering"))
        if outcome.ends[index] > outcome.useful[index]:
            spans.append(Span(lane, outcome.useful[index], outcome.ends[index], "done, kept"))
    return Figure(
        name=f"timeline-{strategy.replace(', ', '-')}",
        title=f"Who is computed when: {strategy}",
        x_label="seconds",
        y_label="request",
        spans=spans,
    )


def _on_sharing(rows: list[list[Any]]) -> str:
    """Whether what is shared is more than what padding costs."""
    sequential, *others = rows
    behind = [
        f"{row[0]} brings {row[1] / sequential[1]:.2f} times as many"
        for row in others
        if row[1] <= sequential[1]
    ]
    if not behind:
        return "As expected, all beat one after the other."
    return f"Not all beat one after the other, as was expected: {', '.join(behind)}."


def _conclusion(rows: list[list[Any]], batch: int) -> list[str]:
    sequential, static, padded, paged = rows
    least = min(rows, key=lambda row: row[4])
    text = "; all four wrote the same text"
    if different := [row[0] for row in rows if row[-1] != "yes"]:
        text = f"; not the text of {SEQUENTIAL} has {', '.join(different)}"
    return [
        f"{PAGED[0].upper()}{PAGED[1:]} batching of {batch} brings {paged[1] / sequential[1]:.2f}"
        " times the wanted tokens per second of one after the other,"
        f" {paged[1] / static[1]:.2f} times those of static batches, which waste {static[7]:.0f}%"
        f" of what they compute, and {paged[1] / padded[1]:.2f} times those of padded steps, which"
        f" waste {padded[7]:.0f}%; padded steps bring {padded[1] / static[1]:.2f} times those of"
        f" static batches. {_on_sharing(rows)}",
        f"The mean latency is {sequential[4]:.2f} s sequential, {static[4]:.2f} s static,"
        f" {padded[4]:.2f} s {PADDED} and {paged[4]:.2f} s {PAGED}; the lowest is that of"
        f" {least[0]}{text}.",
    ]


EXPERIMENT = Experiment(
    name="batching",
    question="What does continuous batching gain over static batches and over none?",
    hypothesis=(
        "Batches share each reading of the weights, so all beat one after the other; static ones"
        " compute padding until their longest answer ends, continuous ones only where prompts and"
        " answers share a rectangle, and flat steps over paged memory nothing but wanted tokens."
    ),
    method=(
        "The same requests, with exponential answer lengths, through the same engine and kernels:"
        " one at a time; in batches whose prompts are padded to the longest and whose answers all"
        " run as long as the longest; all at once under the scheduler, each step padded to a"
        " rectangle as wide as its longest member; and the same with flat steps. Padding is"
        " computed. Only wanted tokens count."
    ),
    quick=Settings(requests=16, batch=8, prompt=(8, 64), mean_answer=24, max_answer=96, repeats=1),
    full=Settings(
        requests=64, batch=16, prompt=(16, 256), mean_answer=64, max_answer=256, repeats=3
    ),
    run=run,
)
