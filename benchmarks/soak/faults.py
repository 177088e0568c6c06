"""What goes wrong during a soak: engines and Redis are killed, crowds arrive."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil

from benchmarks.soak.outcome import Book, send
from benchmarks.soak.traffic import good
from benchmarks.soak.watch import engine_of

CROWD = 500
RECOVERY_SECONDS = 60


class Redis:
    """A redis-server of our own, which can be killed and started again on its port."""

    def __init__(self, folder: str) -> None:
        if shutil.which("redis-server") is None:
            raise SystemExit("soak needs redis-server (Debian: apt install redis-server)")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self._folder = folder
        self.start()

    def start(self) -> None:
        options = f"--bind 127.0.0.1 --port {self.port} --appendonly no --dir {self._folder}"
        self._process = subprocess.Popen(
            ["redis-server", *options.split(), "--save", ""], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise SystemExit("redis-server did not start") from None
                time.sleep(0.05)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def redis() -> Iterator[Redis]:
    with tempfile.TemporaryDirectory() as folder:
        server = Redis(folder)
        try:
            yield server
        finally:
            server.kill()


async def kill_engine(server: psutil.Process, client: httpx.AsyncClient) -> float | None:
    """SIGKILL; returns the seconds until the server is ready again, or None if it does not."""
    engine = engine_of(server)
    if engine is None:
        return None
    os.kill(engine.pid, signal.SIGKILL)
    begin = time.monotonic()
    while time.monotonic() - begin < RECOVERY_SECONDS:
        await asyncio.sleep(0.1)
        try:
            ready = (await client.get("/ready")).status_code == 200
        except httpx.HTTPError:
            continue
        revived = engine_of(server)
        if ready and revived is not None and revived.pid != engine.pid:
            return round(time.monotonic() - begin, 1)
    return None


async def crowd(client: httpx.AsyncClient, book: Book, chance: random.Random) -> None:
    """Five hundred clients at once, each with a request that deserves an answer."""

    async def one() -> None:
        ask = good(chance, streams=chance.random() < 0.5)
        book.add(ask, await send(client, ask))

    await asyncio.gather(*(one() for _ in range(CROWD)))
