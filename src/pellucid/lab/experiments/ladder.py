"""From a script to an engine, one idea at a time, under one load."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from pellucid.lab.experiment import Experiment, Lab
from pellucid.lab.fit import Spread, spread
from pellucid.lab.result import Figure, Findings, Series, Table
from pellucid.lab.rungs import FIRST, NATIVE, RUNGS, Job, Outcome, Size, open_servers

EXPECTED = "5 KV cache"  # to be the highest step
TWINS = "1 load once", "2 queue"  # compute the very same, so their speeds tell the noise
LEVEL = 0.05  # what is nearer to 1 than this, or than the noise, is called level


class Settings(msgspec.Struct, frozen=True):
    requests: int
    rate: float  # arrivals per second
    system: int  # tokens that all prompts begin with
    question: tuple[int, int]  # shortest and longest, in tokens
    mean_answer: int
    max_answer: int
    seats: int  # how many of the longest texts the KV memory holds
    budget: int  # tokens of a step in chunks
    retry: float  # seconds until a client who was sent away comes again
    repeats: int
    seed: int = 0

    @property
    def size(self) -> Size:
        longest = self.system + self.question[1] + self.max_answer
        return Size(self.requests, self.seats, longest, self.budget, self.retry)


@dataclass(frozen=True, slots=True)
class Climb:
    """A rung beside the one below: throughput = less work x faster x busier. See `_climb`."""

    ratio: float
    work: float
    speed: float
    busy: float


def run(settings: Settings, lab: Lab) -> Findings:
    runs: dict[str, list[Outcome]] = {}
    with open_servers(settings.size, lab.subject) as (servers, notes):
        for name, serve in servers.items():
            if name != FIRST:  # which begins anew for every request
                serve(_warm_up(settings, lab))
        rounds = [(r, name) for r in range(settings.repeats) for name in servers]
        for repeat, name in lab.track(rounds, "rungs"):
            # A round has texts of its own: no rung finds them from the round before.
            jobs = _jobs(settings, lab, settings.seed + 1000 * repeat)
            runs.setdefault(name, []).append(servers[name](jobs))
    return _findings(settings, runs, notes)


def _jobs(settings: Settings, lab: Lab, seed: int) -> list[Job]:
    """Poisson arrivals; a common system prompt, uniform questions, exponential answers."""
    rng = np.random.default_rng(seed)
    count = settings.requests
    # The first token tells rounds apart, that of a question its requests.
    system = [seed % 97 + 3, *lab.subject.prompt(settings.system - 1, seed)]
    arrivals = np.cumsum(rng.exponential(1 / settings.rate, count))
    arrivals -= arrivals[0]
    questions = rng.integers(settings.question[0], settings.question[1] + 1, count)
    answers = np.clip(rng.exponential(settings.mean_answer, count), 1, settings.max_answer)
    return [
        Job(
            float(arrival),
            [*system, index % 97 + 3, *lab.subject.prompt(int(question) - 1, seed + index + 1)],
            int(answer),
        )
        for index, (arrival, question, answer) in enumerate(
            zip(arrivals, questions, answers, strict=True)
        )
    ]


def _warm_up(settings: Settings, lab: Lab) -> list[Job]:
    """Of all seats at once, two tokens each: shapes that were never met cost time once."""
    jobs = _jobs(settings, lab, 1 << 20)[: settings.seats]
    return [dataclasses.replace(job, arrival=0.0, answer=2) for job in jobs]


def _findings(settings: Settings, runs: dict[str, list[Outcome]], notes: list[str]) -> Findings:
    names = list(runs)
    rates = {name: spread([_rate(one) for one in made]) for name, made in runs.items()}
    latencies = {name: _latencies(made) for name, made in runs.items()}
    rows: list[list[str | float | None]] = []
    for name, made in runs.items():
        rate = rates[name]
        row: list[str | float | None] = [name, rate.median, rate.low, rate.high, *latencies[name]]
        row += [statistics.median(shares) for shares in zip(*map(_shares, made), strict=True)]
        rows.append([*row, _same(made, runs[names[0]])])
    columns = ["rung", "tokens/s", "least", "most", "latency s", "95% latency s", "TTFT s"]
    columns += ["positions per token", "% of them padding", "% of time computing"]
    climbs = {
        name: [_climb(*pair) for pair in zip(runs[below], runs[name], strict=True)]
        for below, name in itertools.pairwise(names)
    }
    # What is measured of a rung is only as good as what is measured twice.
    noise = max(abs(math.log(one.speed)) for one in climbs[TWINS[1]])
    notes = [
        *notes,
        f"Rungs {' and '.join(TWINS)} compute the same; a position took up to {math.exp(noise):.2f}"
        " times as long with one as with the other, which is the noise of this run.",
    ]
    steps: list[list[str | float | None]] = [[names[0], None, None, None, RUNGS[names[0]], "-"]]
    for name, each in climbs.items():
        ratio = spread([one.ratio for one in each])
        steps.append([name, ratio.median, ratio.low, ratio.high, RUNGS[name], verdict(each, noise)])
    load = f"{settings.requests} requests within {_last_arrival(runs):.2f} s"
    return Findings(
        tables=[
            Table(f"The same {load}", [*columns, "text of rung 0"], rows),
            Table(
                "Each rung and the one below it, in the same round",
                ["rung", "times", "least", "most", "what it adds", "above the one below?"],
                steps,
            ),
        ],
        figures=[
            _ladder(rates, runs),
            _latency_figure(latencies),
            _factor_figure(runs),
        ],
        notes=notes,
        raw={name: msgspec.to_builtins(made) for name, made in runs.items()},
        conclusion=_conclusion(rows, climbs, noise),
    )


def _rate(one: Outcome) -> float:
    return sum(len(served.token_ids) for served in one.served) / one.seconds


def _shares(one: Outcome) -> tuple[float, float, float]:
    """Positions per token, percent of them that are padding, percent of the time that computes."""
    tokens = sum(len(served.token_ids) for served in one.served)
    padding = 100 * one.wasted / one.positions
    return one.positions / tokens, padding, 100 * one.computing / one.seconds


def _latencies(made: list[Outcome]) -> list[float]:
    """Median and 95th percentile of latency, and median TTFT: medians over rounds, in seconds."""
    each = [
        (
            float(np.percentile([one.latency for one in outcome.served], 50)),
            float(np.percentile([one.latency for one in outcome.served], 95)),
            float(np.percentile([one.ttft for one in outcome.served], 50)),
        )
        for outcome in made
    ]
    return [statistics.median(values) for values in zip(*each, strict=True)]


def _last_arrival(runs: dict[str, list[Outcome]]) -> float:
    return max(one.arrival for one in next(iter(runs.values()))[0].served)


def _same(made: list[Outcome], first: list[Outcome]) -> str:
    """Of how many requests the text is that of `first`, over all rounds."""
    pairs = [
        one.token_ids == other.token_ids
        for outcome, oracle in zip(made, first, strict=True)
        for one, other in zip(outcome.served, oracle.served, strict=True)
    ]
    return "yes" if all(pairs) else f"{sum(pairs)} of {len(pairs)}"


def _climb(below: Outcome, rung: Outcome) -> Climb:
    """tokens/s = tokens/position x position/s of computing x share of the time that computes."""
    work = below.positions / rung.positions  # both make the same tokens
    speed = (rung.positions / rung.computing) / (below.positions / below.computing)
    busy = (rung.computing / rung.seconds) / (below.computing / below.seconds)
    return Climb(_rate(rung) / _rate(below), work, speed, busy)


def verdict(climbs: list[Climb], noise: float) -> str:
    """Whether a rung is above the one below, and what was for that and what against it.

    `noise` is the logarithm of a ratio of speeds that means nothing.
    """
    ratio, work, speed, busy = (
        statistics.median(getattr(one, name) for one in climbs)
        for name in ("ratio", "work", "speed", "busy")
    )
    unsure = max(LEVEL, noise)
    changes = [  # how many positions there are is exact
        (work, LEVEL, f"{work:.1f}x fewer positions", f"{1 / work:.1f}x more positions"),
        (speed, unsure, f"each {speed:.1f}x faster", f"each {1 / speed:.1f}x slower"),
        (busy, LEVEL, f"{busy:.1f}x less idle", f"{1 / busy:.1f}x more idle"),
    ]
    gains = [gain for value, least, gain, _ in changes if math.log(value) > least]
    losses = [loss for value, least, _, loss in changes if math.log(value) < -least]
    word = "level" if abs(math.log(ratio)) < unsure else "yes" if ratio > 1 else "no"
    sides = (gains, losses) if ratio > 1 else (losses, gains)
    why = " but ".join(", ".join(side) for side in sides if side)
    return f"{word}: {why}" if why else word


def _ladder(rates: dict[str, Spread], runs: dict[str, list[Outcome]]) -> Figure:
    x = list(map(float, range(len(rates))))
    series = [
        Series(
            name="measured",
            x=x,
            y=[rate.median for rate in rates.values()],
            low=[rate.low for rate in rates.values()],
            high=[rate.high for rate in rates.values()],
            style="bars",
        )
    ]
    tokens = sum(len(one.token_ids) for one in next(iter(runs.values()))[0].served)
    if last := _last_arrival(runs):  # no server can be faster than its clients come
        series.append(Series(name="asked for", x=x, y=[tokens / last] * len(x), style="dashed"))
    return Figure(
        name="throughput",
        title="The ladder: the same load, one idea more at each rung",
        x_label="rung",
        y_label="tokens/s (median, range)",
        series=series,
        ticks=list(rates),
        log_y=True,
    )


def _latency_figure(latencies: dict[str, list[float]]) -> Figure:
    return Figure(
        name="latency",
        title="What a client waits for",
        x_label="rung",
        y_label="seconds (median over rounds)",
        series=[
            Series(
                name=name,
                x=list(map(float, range(len(latencies)))),
                y=[values[place] for values in latencies.values()],
                style="bars",
            )
            for place, name in enumerate(("median latency", "95% latency", "median TTFT"))
        ],
        ticks=list(latencies),
        log_y=True,
    )


def _factor_figure(runs: dict[str, list[Outcome]]) -> Figure:
    first = next(iter(runs.values()))
    totals = [[_climb(*pair) for pair in zip(first, made, strict=True)] for made in runs.values()]
    names = {"ratio": "tokens/s", "work": "fewer positions per token"}
    names |= {"speed": "positions per second of computing", "busy": "share of time that computes"}
    return Figure(
        name="factors",
        title="Where it comes from: tokens/s is the product of the others",
        x_label="rung",
        y_label="times rung 0",
        series=[
            Series(
                name=name,
                x=list(map(float, range(len(runs)))),
                y=[statistics.median(getattr(one, key) for one in each) for each in totals],
                style="dashed" if key == "ratio" else "line",
            )
            for key, name in names.items()
        ],
        ticks=list(runs),
        log_y=True,
    )


def _conclusion(rows: list[list[Any]], climbs: dict[str, list[Climb]], noise: float) -> list[str]:
    first, last = rows[0], rows[-1]
    medians = {name: statistics.median(c.ratio for c in each) for name, each in climbs.items()}
    best = max(medians, key=lambda name: medians[name])
    verdicts = {name: verdict(each, noise) for name, each in climbs.items()}
    why = {name: told.removeprefix("yes: ").removeprefix("no: ") for name, told in verdicts.items()}
    not_above = [
        f"{name} ({medians[name]:.2f} times, {why[name]})"
        for name in climbs
        if not verdicts[name].startswith("yes")
    ]
    parted = [f"{row[0]} ({row[-1]})" for row in rows if row[-1] != "yes" and row[0] != NATIVE]
    up = (
        f"From rung {first[0]} to {last[0]} the same load goes from {first[1]:.1f} to {last[1]:.0f}"
    )
    up += f" tokens per second, {last[1] / first[1]:.0f} times as many, and the median latency from"
    up += f" {first[4]:.1f} to {last[4]:.2f} s; the highest step is {best},"
    up += f" {medians[best]:.1f} times the one below ({why[best]})"
    if best != EXPECTED:
        up += f", and not {EXPECTED} with its {medians[EXPECTED]:.1f}, as was expected"
    rest = "Every rung is above the one below by more than the noise"
    if not_above:
        rest = f"Not above the one below: {'; '.join(not_above)}"
    same = "; every rung that promises the same text wrote it"
    if parted:
        same = f"; of those that promise the same text these did not write it: {', '.join(parted)}"
    return [up + ".", rest + same + "."]


EXPERIMENT = Experiment(
    name="ladder",
    question="What does each idea of an inference engine bring, one upon the other?",
    hypothesis=(
        "Each rung brings more tokens per second than the one below it under the same load, the KV"
        " cache most, since it ends the computing of all text for every token; rungs 0 to 7 write"
        " the same text."
    ),
    method=(
        "The same requests at the same times to nine servers in this process: 0 to 5 by one loop"
        " over padded batches, 6 to 8 by the engine, of which 0 to 7 share model code and reference"
        " kernels, whose bits do not depend on a batch. 6 gets as many seats as room for the"
        " longest text each would fit into the memory that 5 to 8 have alike. A position is one"
        " token through the model; tokens/s = tokens per position x positions per second of"
        " computing x share of the time that computes, so each step is told by these three. Rungs"
        " take turns in rounds of texts of their own, after a warm-up; ratios are within a round."
    ),
    quick=Settings(
        requests=6,
        rate=40,
        system=33,
        question=(6, 15),
        mean_answer=10,
        max_answer=16,
        seats=3,
        budget=64,
        retry=0.5,
        repeats=1,
    ),
    full=Settings(
        requests=9,
        rate=40,
        system=49,
        question=(8, 31),
        mean_answer=12,
        max_answer=32,
        seats=3,
        budget=128,
        retry=0.5,
        repeats=3,
    ),
    run=run,
)
