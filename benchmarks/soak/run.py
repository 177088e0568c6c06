"""The soak from start to end: warm-up, idle, traffic with faults, idle, verdict."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import httpx
import psutil

from benchmarks.report import save
from benchmarks.serving import serving
from benchmarks.soak.faults import Redis, crowd, kill_engine, redis
from benchmarks.soak.outcome import Book, send
from benchmarks.soak.traffic import next_ask
from benchmarks.soak.verdict import checks, quiet_log, table, write_into_docs
from benchmarks.soak.watch import Watch

CLIENTS = 20  # that ask one thing after the other, besides the crowds
WARM_SHARE, WARM_SECONDS = 0.1, 10.0
IDLE_SECONDS = 120
PROBE_SECONDS = 30
FLAGS = (
    "--max-num-seqs 16 --max-waiting 64 --max-model-len 2048 --num-kv-blocks 192"
    " --request-timeout 90 --log-level warning"
)
# What happens when, as a share of the time.
ENGINE_KILLS, REDIS_KILL, REDIS_BACK = (0.25, 0.55), 0.40, 0.50
CROWDS = (0.10, 0.35, 0.65, 0.80)


def main(*options: str) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(options)
    log: list[str] = []
    with redis() as store:
        cache = f"--cache redis://127.0.0.1:{store.port}"
        with serving(given.model, *FLAGS.split(), *cache.split(), log_lines=log) as (server, port):
            soak = Soak(server, port, store, given.minutes * 60, given.seed)
            results = asyncio.run(soak.run())
    soak.found.append(quiet_log(log))
    results["checks"] = [asdict(check) for check in soak.found]
    results["passed"] = all(check.holds for check in soak.found)
    text = table(soak.book, given.minutes, soak.found)
    print(text)
    for failure in soak.book.failures:
        print("FAILED", failure)
    save("soak", results, minutes=given.minutes, model=given.model, seed=given.seed, flags=FLAGS)
    write_into_docs(text)
    if not results["passed"]:
        sys.exit(1)


class Soak:
    """One run against one server."""

    def __init__(
        self, server: psutil.Process, port: int, store: Redis, seconds: float, seed: int
    ) -> None:
        self.book = Book()
        self.found: list[Any] = []
        self._server = server
        self._url = f"http://127.0.0.1:{port}"
        self._store = store
        self._seconds = seconds
        self._chance = random.Random(seed)
        self._faults: list[dict[str, Any]] = []

    async def run(self) -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=self._url, timeout=PROBE_SECONDS) as probe:
            watch = Watch(self._server, probe, self._store.port)
            warm = max(WARM_SECONDS, WARM_SHARE * self._seconds)
            await self._traffic(warm, [(0.3, self._crowd)])
            before = await watch.idle(IDLE_SECONDS)
            watch.samples.clear()
            looking = asyncio.create_task(watch.run(every=max(0.5, self._seconds / 240)))
            await self._traffic(self._seconds, self._plan(watch, probe))
            looking.cancel()
            await asyncio.wait({looking})
            if not looking.cancelled():
                looking.result()
            samples = watch.samples[:]
            after = await watch.idle(IDLE_SECONDS)
        recoveries = [f["recovered"] for f in self._faults if f["what"] == "engine killed"]
        self.found = checks(self.book, before, after, samples, recoveries, watch.num_blind)
        return {
            "ends": self.book.ends,
            "totals": self.book.totals,
            "errors": self.book.reasons,
            "failures": self.book.failures,
            "faults": self._faults,
            "before": asdict(before),
            "after": asdict(after),
            "samples": [asdict(sample) for sample in samples],
        }

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=CLIENTS)
        return httpx.AsyncClient(base_url=self._url, limits=limits, timeout=None)

    def _plan(
        self, watch: Watch, probe: httpx.AsyncClient
    ) -> list[tuple[float, Callable[[httpx.AsyncClient], Awaitable[None]]]]:
        def note(what: str, **more: Any) -> None:
            self._faults.append({"what": what, "at": round(watch.seconds, 1), **more})

        async def engine(_: httpx.AsyncClient) -> None:
            note("engine killed", recovered=None)
            fault = self._faults[-1]
            fault["recovered"] = await kill_engine(self._server, probe)

        async def lose_redis(_: httpx.AsyncClient) -> None:
            note("Redis killed")
            self._store.kill()

        async def return_redis(_: httpx.AsyncClient) -> None:
            note("Redis started")
            await asyncio.to_thread(self._store.start)

        async def arrive(client: httpx.AsyncClient) -> None:
            note("crowd")
            await self._crowd(client)

        return [
            *((share, engine) for share in ENGINE_KILLS),
            *((share, arrive) for share in CROWDS),
            (REDIS_KILL, lose_redis),
            (REDIS_BACK, return_redis),
        ]

    async def _crowd(self, client: httpx.AsyncClient) -> None:
        await crowd(client, self.book, self._chance)

    async def _traffic(
        self,
        seconds: float,
        plan: list[tuple[float, Callable[[httpx.AsyncClient], Awaitable[None]]]],
    ) -> None:
        """Clients that ask one thing after the other for so long, and what happens meanwhile."""
        end = time.monotonic() + seconds

        async def ask_on(client: httpx.AsyncClient) -> None:
            while time.monotonic() < end:
                ask = next_ask(self._chance)
                self.book.add(ask, result := await send(client, ask))
                if result.how in ("busy", "error"):
                    await asyncio.sleep(1.0)  # what Retry-After asks for

        async def happen(client: httpx.AsyncClient, share: float, what: Any) -> None:
            await asyncio.sleep(share * seconds)
            await what(client)

        async with self._client() as client, asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(ask_on(client))
            for share, what in plan:
                group.create_task(happen(client, share, what))
