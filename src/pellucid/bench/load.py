"""Load on a server: when requests leave, and what their answers' times add up to.

    TTFT  sent -> first text            ITL  between chunks with text, over all requests
    E2E   sent -> end of the stream     TPOT (E2E - TTFT) / (output tokens - 1), per request

Times count from sending. With a limit on concurrency a request may leave later than the arrival
process wanted; that delay is no part of them and is reported as `wait_ms`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from pellucid.bench.client import Outcome, stream_request
from pellucid.bench.summary import Summary, summarize
from pellucid.errors import ConfigError

if TYPE_CHECKING:
    import httpx

MS = 1e3
GOODPUT_METRICS = ("ttft", "tpot", "e2e")


class LoadReport(msgspec.Struct, kw_only=True):
    """What the server did; times in milliseconds, rates per second of the run."""

    completed: int
    failed: int
    failures: dict[str, int]  # reason -> how often
    seconds: float
    prompt_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_ms: Summary | None
    itl_ms: Summary | None
    tpot_ms: Summary | None
    e2e_ms: Summary | None
    wait_ms: Summary | None
    goodput: dict[str, float] | None  # limits in ms, good requests, and these per second
    without_usage: int  # answers whose tokens were counted as chunks
    client_cpu_share: float  # of one core; near 1 this client was the bottleneck


def arrival_times(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Seconds from the start at which requests are due.

    Gaps follow a gamma distribution of mean 1/rate and shape `burstiness`: 1 is a Poisson process,
    less is burstier, more is more even. An infinite rate sends all at once.
    """
    if math.isinf(rate):
        return [0.0] * count
    gaps = np.random.default_rng(seed).gamma(burstiness, 1.0 / (rate * burstiness), count)
    due: list[float] = (np.cumsum(gaps) - gaps[:1]).tolist()
    return due


def parse_goodput(limits: Sequence[str]) -> dict[str, float]:
    """`["ttft:500", "tpot:50"]` as {"ttft": 500.0, ...}. Raises ConfigError naming the flag."""
    parsed = {}
    for limit in limits:
        metric, _, milliseconds = limit.partition(":")
        try:
            parsed[metric] = float(milliseconds)
        except ValueError:
            parsed[metric] = math.nan
        if metric not in GOODPUT_METRICS or not parsed[metric] > 0:
            raise ConfigError(
                f"--goodput {limit}: must be METRIC:MILLISECONDS, "
                f"the metric one of {', '.join(GOODPUT_METRICS)}"
            )
    return parsed


async def run_load(
    client: httpx.AsyncClient,
    path: str,
    bodies: Sequence[bytes],
    arrivals: Sequence[float],
    max_concurrency: int | None,
    on_done: Callable[[], None] = lambda: None,
) -> tuple[list[Outcome], float, float]:
    """Send every body when it is due; return outcomes, wall seconds and this client's CPU seconds.

    `on_done` is called after each request.
    """
    slots = asyncio.Semaphore(max_concurrency or len(bodies))
    begin, cpu = time.perf_counter(), time.process_time()
    outcomes = [Outcome(due=begin + arrival) for arrival in arrivals]

    async def one(body: bytes, outcome: Outcome) -> None:
        await asyncio.sleep(outcome.due - time.perf_counter())
        async with slots:
            await stream_request(client, path, body, outcome)
        on_done()

    await asyncio.gather(*map(one, bodies, outcomes))
    return outcomes, time.perf_counter() - begin, time.process_time() - cpu


def report(
    outcomes: Sequence[Outcome], seconds: float, cpu_seconds: float, goodput: Mapping[str, float]
) -> LoadReport:
    """Sum up; only complete answers enter the latencies and token counts."""
    good = [o for o in outcomes if o.error is None]
    failures = Counter(o.error for o in outcomes if o.error is not None)
    prompt_tokens = sum(o.usage.prompt_tokens for o in good if o.usage)
    output_tokens = sum(o.output_tokens for o in good)
    return LoadReport(
        completed=len(good),
        failed=len(outcomes) - len(good),
        failures=dict(failures.most_common()),
        seconds=seconds,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        requests_per_s=len(good) / seconds,
        output_tokens_per_s=output_tokens / seconds,
        total_tokens_per_s=(prompt_tokens + output_tokens) / seconds,
        ttft_ms=summarize((o.ttft for o in good), MS),
        itl_ms=summarize((gap for o in good for gap in np.diff(o.text_times)), MS),
        tpot_ms=summarize((o.tpot for o in good if o.tpot is not None), MS),
        e2e_ms=summarize((o.e2e for o in good), MS),
        wait_ms=summarize((o.sent - o.due for o in good), MS),
        goodput=_goodput(good, goodput, seconds) if goodput else None,
        without_usage=sum(o.usage is None for o in good),
        client_cpu_share=cpu_seconds / seconds,
    )


def _goodput(
    outcomes: Sequence[Outcome], limits: Mapping[str, float], seconds: float
) -> dict[str, Any]:
    """Requests that kept every limit. One token has no TPOT, so it keeps any."""
    good = sum(
        all((getattr(o, metric) or 0.0) * MS <= limit for metric, limit in limits.items())
        for o in outcomes
    )
    named = {f"{metric}_limit_ms": limit for metric, limit in limits.items()}
    return {**named, "requests": good, "requests_per_s": good / seconds}
