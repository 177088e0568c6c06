"""Where cached answers lie: in this process, or in a Redis that several servers share."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Protocol

from pellucid.config import MIB, AnswerCacheSettings
from pellucid.observe.counters import Counters
from pellucid.server.gateway.breaker import Breaker, redis_options

OVERHEAD_BYTES = 256  # of an entry, for its key and its place
PREFIX = b"pellucid:answer:"


class Store(Protocol):
    """Bytes by key. Neither method raises: a store that fails has nothing and keeps nothing."""

    async def get(self, key: bytes) -> bytes | None: ...

    async def put(self, key: bytes, value: bytes) -> None: ...

    async def close(self) -> None: ...


class MemoryStore:
    """Least recently used entries go first, so that all of them fit into `max_bytes`."""

    def __init__(self, max_bytes: int, ttl: float) -> None:
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._entries: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()  # (expiry, value)
        self.num_bytes = 0

    async def get(self, key: bytes) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        expiry, value = entry
        if time.monotonic() >= expiry:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    async def put(self, key: bytes, value: bytes) -> None:
        self._drop(key)
        size = len(value) + OVERHEAD_BYTES
        if size > self._max_bytes:
            return
        while self.num_bytes + size > self._max_bytes:
            self._drop(next(iter(self._entries)))
        self._entries[key] = (time.monotonic() + self._ttl, value)
        self.num_bytes += size

    async def close(self) -> None:
        self._entries.clear()

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_bytes -= len(entry[1]) + OVERHEAD_BYTES


class RedisStore:
    """Redis forgets entries after `ttl`, and before if its own memory limit makes it.

    A Redis that hangs or dies costs the hits it would have given, and one short wait now and then.
    """

    def __init__(self, url: str, ttl: int, counts: Counters) -> None:
        """Raises ConfigError if the redis package is missing."""
        options = redis_options()
        from redis.asyncio import Redis

        def count() -> None:
            counts.redis_failures += 1

        self._redis = Redis.from_url(url, **options)
        self._ttl = ttl
        self._breaker = Breaker("the Redis that caches answers", count)

    async def get(self, key: bytes) -> bytes | None:
        value = await self._breaker.call(lambda: self._redis.get(PREFIX + key), None)
        return value if isinstance(value, bytes) else None

    async def put(self, key: bytes, value: bytes) -> None:
        await self._breaker.call(lambda: self._redis.set(PREFIX + key, value, ex=self._ttl), None)

    async def close(self) -> None:
        await self._redis.aclose()


def make_store(settings: AnswerCacheSettings, counts: Counters) -> Store | None:
    """The store that `--cache` names. Raises ConfigError."""
    if settings.cache == "off":
        return None
    if settings.cache == "memory":
        return MemoryStore(settings.cache_memory_mib * MIB, settings.cache_ttl)
    return RedisStore(settings.cache, settings.cache_ttl, counts)
