"""What a scheduling step costs with many running requests and a full queue, without a model.

The runner is the fake one, whose time is not counted: `schedule` plans, `update` takes the result.
"""

from __future__ import annotations

import random
import time

from benchmarks.report import save
from pellucid.bench.summary import Summary, summarize
from pellucid.config import CacheSettings, SchedulerSettings
from pellucid.engine.core import EngineCore
from pellucid.messages import AddRequest, pack_tokens
from pellucid.runner.fake import FakeRunner
from pellucid.sampling_params import SamplingParams

RUNNING = 256
WAITING = 1024
STEPS = 400


def busy_engine(policy: str) -> EngineCore:
    """An engine past its start-up, with RUNNING requests that decode and WAITING in the queue."""
    engine = EngineCore(
        FakeRunner(num_blocks=65536),
        CacheSettings(),
        SchedulerSettings(
            policy=policy, max_num_seqs=RUNNING, max_waiting=WAITING, max_chunk_tokens=2048
        ),
    )
    rng = random.Random(0)
    for index in range(RUNNING + WAITING):
        engine.add(
            AddRequest(
                request_id=str(index),
                prompt=pack_tokens([rng.randrange(49152) for _ in range(rng.randint(20, 400))]),
                sampling=SamplingParams(max_tokens=rng.randint(300, 900)),
                arrival_time=float(index),
                user=str(index % 10),
                priority=index % 3,
            )
        )
    while len(engine.scheduler.running) < RUNNING:
        engine.step()
    return engine


def measure(policy: str) -> dict[str, Summary | None]:
    engine = busy_engine(policy)
    plan_seconds, update_seconds = [], []
    for _ in range(STEPS):
        begin = time.perf_counter()
        plan = engine.scheduler.schedule(time.monotonic())
        plan_seconds.append(time.perf_counter() - begin)
        result = engine.runner.execute(plan).result()
        begin = time.perf_counter()
        engine.scheduler.begin(plan)
        engine.scheduler.update(plan, result, time.monotonic())
        update_seconds.append(time.perf_counter() - begin)
    both = [a + b for a, b in zip(plan_seconds, update_seconds, strict=True)]
    return {
        "schedule_us": summarize(plan_seconds, 1e6),
        "update_us": summarize(update_seconds, 1e6),
        "both_us": summarize(both, 1e6),
    }


def main() -> None:
    results = {
        policy: measure(policy) for policy in ("fifo", "priority", "shortest-first", "fair-share")
    }
    for policy, figures in results.items():
        both = figures["both_us"]
        if both is not None:
            print(f"{policy:15} {both.p50:6.0f} us median, {both.p99:6.0f} us p99 per step")
    save("scheduler_step", results, running=RUNNING, waiting=WAITING, steps=STEPS)
