"""Scheduling policies on the same recorded arrivals, in virtual time."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from pellucid.config import SchedulerSettings
from pellucid.engine.kv_cache import KVCacheManager
from pellucid.engine.policy import POLICIES, load_policy
from pellucid.engine.request import Request
from pellucid.engine.scheduler import Scheduler
from pellucid.lab.experiment import Experiment, Lab
from pellucid.lab.fit import Spread, spread
from pellucid.lab.result import Figure, Findings, Series, Table
from pellucid.messages import AddRequest, pack_tokens
from pellucid.runner.fake import FakeRunner
from pellucid.sampling_params import SamplingParams

BLOCKS = 8192
CONTEXT = 8192
STARVES = 2.0  # times fifo's longest wait, from which a class is said to starve
SAME = 0.005  # of a number, within which another is said to be as large
SHORTEST = "shortest-first"  # which the hypothesis has for the lowest mean latency


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of requests: lengths are uniform between two bounds, in tokens."""

    prompt: tuple[int, int]
    answer: tuple[int, int]
    priority: int
    users: int


KINDS = {
    "short": Kind((16, 64), (8, 48), priority=0, users=8),
    "long": Kind((256, 1024), (64, 256), priority=5, users=4),
    "bulk": Kind((128, 512), (32, 128), priority=10, users=1),  # one user who sends bursts
}


class Settings(msgspec.Struct, frozen=True):
    requests: int
    seeds: int
    rate: float = 3.0  # arrivals per second, bursts included
    burst: int = 20  # requests that the bulk user sends at once
    seats: int = 8
    budget: int = 256  # tokens of a step
    # The simulated machine: an assumption, the same for all policies, and no measurement.
    step_ms: float = 15.0
    token_ms: float = 0.6
    policies: tuple[str, ...] = tuple(POLICIES)
    policy: str | None = None  # one more, as module:Class


@dataclass(frozen=True, slots=True)
class Arrival:
    kind: str
    user: str
    time: float  # virtual seconds
    prompt: int
    answer: int


def run(settings: Settings, lab: Lab) -> Findings:
    policies = [*settings.policies, *([settings.policy] if settings.policy else [])]
    for policy in policies:
        load_policy(policy)  # or say what is wrong with it, before anything is simulated
    raw: dict[str, list[list[dict[str, float | str]]]] = {name: [] for name in policies}
    for seed in lab.track(range(settings.seeds), "recordings"):
        arrivals = record(settings, seed)
        for policy in raw:
            raw[policy].append(simulate(settings, arrivals, policy))
    return _findings(settings, raw)


def record(settings: Settings, seed: int) -> list[Arrival]:
    """Poisson arrivals of short and long requests, and bursts of the bulk user among them."""
    rng = np.random.default_rng(seed)
    clock, arrivals = 0.0, list[Arrival]()
    while len(arrivals) < settings.requests:
        clock += float(rng.exponential(1 / settings.rate))
        kind = str(rng.choice(["short", "long", "bulk"], p=[0.8, 0.17, 0.03]))
        for _ in range(settings.burst if kind == "bulk" else 1):
            about = KINDS[kind]
            user = f"{kind}{rng.integers(about.users)}"
            prompt, answer = (int(rng.integers(*span)) for span in (about.prompt, about.answer))
            arrivals.append(Arrival(kind, user, clock, prompt, answer))
    return arrivals


def simulate(
    settings: Settings, arrivals: Sequence[Arrival], policy: str
) -> list[dict[str, float | str]]:
    """The engine's own scheduler over a runner without a model; a step takes virtual time.

    Returns queue time, time to first token and latency of each arrival, in virtual seconds.
    """
    runner = FakeRunner(num_blocks=BLOCKS, max_model_len=CONTEXT)
    kv = KVCacheManager(BLOCKS, 16, prefix_caching=False)
    limits = SchedulerSettings(max_num_seqs=settings.seats)
    scheduler = Scheduler(limits, kv, load_policy(policy), settings.budget)
    requests = [_request(index, one) for index, one in enumerate(arrivals)]
    coming = deque(requests)
    now = 0.0
    while coming or scheduler.requests:
        if not scheduler.requests:
            now = max(now, coming[0].arrival_time)
        while coming and coming[0].arrival_time <= now:
            scheduler.add(coming.popleft())
        plan = scheduler.schedule(now)
        result = runner.execute(plan).result()
        now += (settings.step_ms + settings.token_ms * plan.num_tokens) / 1e3
        scheduler.begin(plan)
        scheduler.update(plan, result, now)
    return [_fate(one, request) for one, request in zip(arrivals, requests, strict=True)]


def _request(index: int, arrival: Arrival) -> Request:
    sampling = SamplingParams(max_tokens=arrival.answer, temperature=0.0, ignore_eos=True)
    message = AddRequest(
        request_id=str(index),
        prompt=pack_tokens([index % 97 + 3] * arrival.prompt),
        sampling=sampling,
        arrival_time=arrival.time,
        priority=KINDS[arrival.kind].priority,
        user=arrival.user,
    )
    return Request(message, max_model_len=CONTEXT, eos_token_ids=frozenset())


def _fate(arrival: Arrival, request: Request) -> dict[str, float | str]:
    times = request.times
    assert times.scheduled is not None
    assert times.first_token is not None
    assert times.finished is not None
    return {
        "kind": arrival.kind,
        "queue": times.scheduled - arrival.time,
        "ttft": times.first_token - arrival.time,
        "latency": times.finished - arrival.time,
    }


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds that a class queues under a policy. A recording is a repeat: spreads are over these.

    `tail` is the 95th percentile of a recording.
    """

    median: Spread
    tail: Spread
    longest: float

    @classmethod
    def of(cls, recordings: list[list[float]]) -> Waits:
        return cls(
            spread([statistics.median(one) for one in recordings]),
            spread([float(np.percentile(one, 95)) for one in recordings]),
            max(map(max, recordings)),
        )


def _findings(settings: Settings, raw: dict[str, Any]) -> Findings:
    waits: dict[str, dict[str, Waits]] = {}
    for policy, recordings in raw.items():
        waits[policy] = {}
        for kind in KINDS:
            queues = [[r["queue"] for r in one if r["kind"] == kind] for one in recordings]
            if queues := [queue for queue in queues if queue]:
                waits[policy][kind] = Waits.of(queues)
    rows: list[list[str | float | None]] = [
        [
            f"{policy}: {kind}",
            *(one.median.median, one.median.low, one.median.high),
            *(one.tail.median, one.longest),
        ]
        for policy, kinds in waits.items()
        for kind, one in kinds.items()
    ]
    latency = {
        policy: spread([statistics.mean(r["latency"] for r in one) for one in recordings]).median
        for policy, recordings in raw.items()
    }
    columns = ["policy: class", "queue s", "least", "most", "95% queue s", "longest queue s"]
    means: list[list[str | float | None]] = [[name, value] for name, value in latency.items()]
    return Findings(
        tables=[
            Table("Time in the queue, by class", columns, rows),
            Table("Mean latency of all requests", ["policy", "seconds"], means),
        ],
        figures=[
            _bars(
                "queue",
                "Median time in the queue, and its range over recordings",
                waits,
                lambda one: one.median,
            ),
            _bars(
                "tail",
                "Time in the queue: 95th percentile, and whiskers up to the longest",
                waits,
                lambda one: Spread(one.tail.median, one.tail.median, one.longest),
            ),
        ],
        raw=raw,
        notes=[
            f"Virtual time: a step is taken to cost {settings.step_ms:g} ms and"
            f" {settings.token_ms:g} ms per token. That is an assumption, so only comparisons"
            " between policies mean something; they are exact and repeat on any machine."
        ],
        conclusion=_conclusion(rows, latency),
    )


def _bars(
    name: str, title: str, waits: dict[str, dict[str, Waits]], bar: Callable[[Waits], Spread]
) -> Figure:
    """A bar with whiskers for each class, by policy."""
    series = []
    for kind in KINDS:
        bars = [(i, bar(kinds[kind])) for i, kinds in enumerate(waits.values()) if kind in kinds]
        if bars:
            series.append(
                Series(
                    name=kind,
                    x=[float(i) for i, _ in bars],
                    y=[one.median for _, one in bars],
                    low=[one.low for _, one in bars],
                    high=[one.high for _, one in bars],
                    style="bars",
                )
            )
    return Figure(
        name=name,
        title=title,
        x_label="policy",
        y_label="virtual seconds",
        series=series,
        ticks=list(waits),
    )


def _conclusion(rows: list[list[Any]], latency: dict[str, float]) -> list[str]:
    shorts = {row[0].removesuffix(": short"): row for row in rows if row[0].endswith(": short")}
    least = min(latency.values())
    best = [name for name, mean in latency.items() if mean <= least * (1 + SAME)]
    first = f"{' and '.join(best)} {'has' if len(best) == 1 else 'have'} the lowest mean latency,"
    first += f" {least:.1f} s"
    others = [f"{latency[name]:.1f} s {name}" for name in latency if name not in best]
    first += f" ({', '.join(others)})" if others else ""
    if SHORTEST in latency:
        first += ", as expected" if SHORTEST in best else f", and not {SHORTEST}, as was expected"
    if shorts:
        quick = min(shorts, key=lambda policy: shorts[policy][1])
        slow = max(shorts, key=lambda policy: shorts[policy][1])
        first += f"; short requests wait least under {quick}, {shorts[quick][1]:.2f} s, and most"
        first += f" under {slow}, {shorts[slow][1]:.2f} s"
    return [first + ".", _on_starvation(rows)]


def _on_starvation(rows: list[list[Any]]) -> str:
    """The longest waits beside fifo's longest, which no order of the queue can spare all."""
    longest = {tuple(row[0].split(": ")): row[5] for row in rows}
    wait = max(longest.values())
    who = [
        f"a {kind} request under {policy}"
        for (policy, kind), one in longest.items()
        if one >= wait * (1 - SAME)
    ]
    told = f"The longest anybody waits is {wait:.0f} s, {' and '.join(who)}"
    fifo = max((one for (policy, _), one in longest.items() if policy == "fifo"), default=0.0)
    if not fifo or len({policy for policy, _ in longest}) == 1:
        return f"{told}; there is no other policy with fifo to tell starvation by."
    told += f", {wait / fifo:.1f} times fifo's longest of {fifo:.0f} s"
    starved = [
        f"{kind} ones under {policy} ({one / fifo:.1f} times)"
        for (policy, kind), one in longest.items()
        if one >= STARVES * fifo
    ]
    if starved:
        return f"{told}: requests starve, taking {STARVES:g} times for that: {', '.join(starved)}."
    return f"{told}: nobody starves, taking {STARVES:g} times for that."


EXPERIMENT = Experiment(
    name="schedulers",
    question="Who waits under which scheduling policy?",
    hypothesis=(
        "Fifo lets short requests wait behind bursts; shortest-first has the lowest mean latency;"
        " priority makes the lowest class wait longest; fair-share charges a burst to its sender."
    ),
    method=(
        "Recorded arrivals of three classes (short ones of many users, long ones, bursts of one"
        " user) through the engine's own scheduler and a runner without a model, in virtual time;"
        " the same recordings for every policy, several seeds."
    ),
    quick=Settings(requests=300, seeds=5),
    full=Settings(requests=1000, seeds=10),
    run=run,
    needs_model=False,
)
