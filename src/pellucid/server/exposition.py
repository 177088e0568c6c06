"""GET /metrics: what there is once in a server, and the metrics of every model that is loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pellucid.observe.counters import Counters, CountersCollector
from pellucid.observe.machine import MachineCollector
from pellucid.server.metrics import RATE_WINDOW
from pellucid.server.service import Service

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"  # media type of `Exposition.render`


class Exposition:
    """One server's: two servers in one process do not mix.

    Args:
        counters: of what happens around the engines.
        services: the models that are loaded now.
        names: of all models.
    """

    def __init__(
        self,
        counters: Counters,
        services: Callable[[], Iterable[Service]],
        names: Callable[[], Iterable[str]],
    ) -> None:
        self.registry = CollectorRegistry()
        self._services = services
        self._make_sums()
        self.registry.register(CountersCollector(counters))
        self.registry.register(
            MachineCollector(lambda: {s.llm.model_name: s.llm.info.pid for s in services()})
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(_OfModels(services, names))
        self._loads = Counter(
            "pellucid_model_loads",
            "Times that a model was loaded, or could not be.",
            ["model_name", "outcome"],
            registry=self.registry,
        )

    def count_load(self, name: str, outcome: Literal["loaded", "failed"]) -> None:
        self._loads.labels(name, outcome).inc()

    def num_open(self) -> int:
        """Requests that engines are answering."""
        return sum(service.num_open for service in self._services())

    def tokens_per_second(self) -> float:
        return sum(service.metrics.tokens_per_second() for service in self._services())

    def render(self) -> bytes:
        """Prometheus' text format. Not OpenMetrics, whose encoder rewrites the colon in names."""
        return generate_latest(self.registry)

    def _make_sums(self) -> None:
        streams = Gauge(
            "pellucid_active_streams", "Requests that are being answered.", registry=self.registry
        )
        streams.set_function(self.num_open)
        tasks = Gauge(
            "pellucid_event_loop_tasks",
            "Tasks on the front end's event loop, the one that answers this included.",
            registry=self.registry,
        )
        tasks.set_function(_num_tasks)
        rate = Gauge(
            "pellucid_tokens_per_second",
            f"Tokens generated per second, over the last {RATE_WINDOW:g} seconds.",
            registry=self.registry,
        )
        rate.set_function(self.tokens_per_second)


class _OfModels(Collector):
    """The metrics of each loaded model as one document: families of a name become one."""

    def __init__(
        self, services: Callable[[], Iterable[Service]], names: Callable[[], Iterable[str]]
    ) -> None:
        self._services = services
        self._names = names

    def collect(self) -> Iterator[Metric]:
        loaded = {service.llm.model_name: service for service in self._services()}
        families: dict[str, Metric] = {}
        for service in loaded.values():
            for family in service.metrics.registry.collect():  # new objects, ours to change
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples += family.samples
        yield from families.values()
        gauge = GaugeMetricFamily(
            "pellucid_model_loaded", "1 while a model is loaded.", labels=["model_name"]
        )
        for name in self._names():
            gauge.add_metric([name], name in loaded)
        yield gauge


def _num_tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # read from elsewhere than the event loop
        return 0
