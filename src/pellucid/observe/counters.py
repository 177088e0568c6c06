"""What happens around the engine, counted: others add, `/metrics` reads.

>>> counters.refused["rate_limit_requests"] += 1
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Refusal = Literal[
    "api_key", "queue_full", "rate_limit_requests", "rate_limit_tokens", "shutting_down"
]
CacheOutcome = Literal["hit", "miss", "bypass"]


@dataclass(slots=True)
class Counters:
    """Since the server began; only ever growing."""

    refused: Counter[Refusal] = field(default_factory=Counter)
    cache: Counter[CacheOutcome] = field(default_factory=Counter)  # answers
    engine_restarts: int = 0
    redis_failures: int = 0


class CountersCollector(Collector):
    """Shows `Counters` to Prometheus; every known reason from the start, at zero."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        counters = self._counters
        yield _family(
            "pellucid_refused_requests",
            "Requests turned away before the engine.",
            "reason",
            {name: counters.refused[name] for name in get_args(Refusal)},
        )
        yield _family(
            "pellucid_answer_cache_requests",
            "Requests that the cache of whole answers had, had not, or could not have.",
            "outcome",
            {name: counters.cache[name] for name in get_args(CacheOutcome)},
        )
        yield CounterMetricFamily(
            "pellucid_engine_restarts",
            "Engines started in the place of one that died.",
            value=counters.engine_restarts,
        )
        yield CounterMetricFamily(
            "pellucid_redis_failures",
            "Calls to Redis that failed and were done without.",
            value=counters.redis_failures,
        )


def _family(name: str, about: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, about, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
