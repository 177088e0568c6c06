"""What a server holds, over time: memory, descriptors, threads, tasks, KV blocks."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

FLAT_BYTES, FLAT_SHARE = 32 << 20, 0.10  # growth of memory that allocators explain


@dataclass(frozen=True)
class Sample:
    """One look at the server; of the engine None while there is none."""

    seconds: float  # since the soak began
    probe_seconds: float  # until /metrics answered
    frontend_rss: int
    frontend_fds: int  # but for connections to Redis, whose pool has a size of its own
    redis_connections: int
    frontend_threads: int
    frontend_tasks: int
    num_children: int
    engine_pid: int | None
    engine_rss: int | None
    engine_fds: int | None
    engine_threads: int | None
    running: float
    waiting: float
    kv_usage: float
    active_streams: float


def engine_of(server: psutil.Process) -> psutil.Process | None:
    """The process that computes, if it lives."""
    for child in server.children():
        try:
            if "pellucid.engine.process" in child.cmdline():
                return child
        except psutil.Error:
            continue
    return None


class Watch:
    """Takes samples of one server."""

    def __init__(self, server: psutil.Process, client: httpx.AsyncClient, redis_port: int) -> None:
        self.samples: list[Sample] = []
        self.num_blind = 0  # looks to which the server gave no answer
        self._server = server
        self._redis_port = redis_port
        self._client = client
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    async def run(self, every: float) -> None:
        while True:
            try:
                await self.look()
            except httpx.HTTPError:
                self.num_blind += 1
            await asyncio.sleep(every)

    async def look(self) -> Sample:
        begin = time.monotonic()
        response = await self._client.get("/metrics")
        taken = time.monotonic() - begin
        metrics = {
            sample.name: sample.value
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
        }
        engine = _facts(engine_of(self._server))
        links = [c.raddr.port for c in self._server.net_connections("tcp") if c.raddr]
        num_redis = links.count(self._redis_port)
        sample = Sample(
            seconds=round(self.seconds, 1),
            probe_seconds=round(taken, 3),
            frontend_rss=self._server.memory_info().rss,
            frontend_fds=self._server.num_fds() - num_redis,
            redis_connections=num_redis,
            frontend_threads=self._server.num_threads(),
            frontend_tasks=int(metrics["pellucid_event_loop_tasks"]),
            num_children=len(self._server.children()),
            engine_pid=engine[0],
            engine_rss=engine[1],
            engine_fds=engine[2],
            engine_threads=engine[3],
            running=metrics["vllm:num_requests_running"],
            waiting=metrics["vllm:num_requests_waiting"],
            kv_usage=metrics["vllm:kv_cache_usage_perc"],
            active_streams=metrics["pellucid_active_streams"],
        )
        self.samples.append(sample)
        return sample

    async def idle(self, seconds: float) -> Sample:
        """A sample in which nothing is left to do, nor to close; or the last before time is up."""
        deadline = time.monotonic() + seconds
        fds = -1
        while True:
            sample = await self.look()
            busy = sample.running or sample.waiting or sample.kv_usage or sample.active_streams
            ready = (await self._client.get("/ready")).status_code == 200
            rests = ready and not busy and sample.frontend_fds == fds
            if rests or time.monotonic() > deadline:
                return sample
            fds = sample.frontend_fds
            await asyncio.sleep(2.0)


def _facts(process: psutil.Process | None) -> tuple[int | None, ...]:
    if process is not None:
        try:
            with process.oneshot():
                rss, fds = process.memory_info().rss, process.num_fds()
                return process.pid, rss, fds, process.num_threads()
        except psutil.Error:  # it has just died
            pass
    return None, None, None, None


def growth(series: Sequence[int]) -> int:
    """Bytes between the middle of the second quarter of a series and that of the last."""
    quarter = len(series) // 4
    if not quarter:
        return 0
    early = statistics.median(series[quarter : 2 * quarter])
    return round(statistics.median(series[-quarter:]) - early)


def is_flat(series: Sequence[int]) -> bool:
    """Whether memory stopped growing."""
    return not series or growth(series) <= FLAT_BYTES + FLAT_SHARE * statistics.median(series)
