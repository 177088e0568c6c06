"""Requests and tokens a minute for each client, counted by the `limits` library."""

from __future__ import annotations

import ipaddress
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pellucid.config import LimitSettings
from pellucid.errors import BadRequest, ConfigError, RateLimited
from pellucid.observe.counters import Counters, Refusal
from pellucid.server.gateway.breaker import Breaker, redis_options

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.aio.strategies import SlidingWindowCounterRateLimiter

Unit = Literal["requests", "tokens"]


class RateLimiter:
    """The two limits of every client. Without a limit nothing of it is imported or counted.

    The window slides: two counters, the last minute's weighted by how much of it is still in view.
    If Redis fails this server counts alone until it is back.
    """

    def __init__(self, settings: LimitSettings, counts: Counters) -> None:
        """Raises ConfigError if the limits or redis package is needed and missing."""
        self._counts = counts
        self._limits: dict[Unit, _Limit] = {}
        amounts: dict[Unit, int | None] = {
            "requests": settings.rate_limit_requests,
            "tokens": settings.rate_limit_tokens,
        }
        for unit, amount in amounts.items():
            if amount is not None:
                self._limits[unit] = _Limit(unit, amount, settings.rate_limit_storage, counts)

    @property
    def counts_tokens(self) -> bool:
        return "tokens" in self._limits

    async def admit(self, client: str, headers: dict[str, str]) -> None:
        """Count a request; puts the `x-ratelimit-*` into `headers`. Raises RateLimited."""
        requests, tokens = self._limits.get("requests"), self._limits.get("tokens")
        if requests is not None and not await requests.take(client, 1):
            raise await self._refusal(requests, client, headers)
        if tokens is not None and not await tokens.has_room(client):
            raise await self._refusal(tokens, client, headers)
        for limit in self._limits.values():
            (await limit.state(client)).tell(headers)

    async def charge_prompt(self, client: str, num_tokens: int, headers: dict[str, str]) -> None:
        """Count a prompt's tokens. Raises RateLimited; BadRequest if no minute has so many."""
        limit = self._limits.get("tokens")
        if limit is None:
            return
        if num_tokens > limit.amount:
            raise BadRequest(
                f"The prompt has {num_tokens} tokens; this server takes {limit.amount} a minute.",
                param="prompt",
                code="rate_limit_exceeded",
            )
        if not await limit.take(client, num_tokens):
            raise await self._refusal(limit, client, headers)
        (await limit.state(client)).tell(headers)

    async def charge_answer(self, client: str, num_tokens: int) -> None:
        """Count what was generated. It is there already, so it may use up more than is left."""
        limit = self._limits.get("tokens")
        if limit is not None and num_tokens and not await limit.take(client, num_tokens):
            await limit.take(client, (await limit.state(client)).remaining)

    async def _refusal(self, limit: _Limit, client: str, headers: dict[str, str]) -> RateLimited:
        reason: Refusal = "rate_limit_requests" if limit.unit == "requests" else "rate_limit_tokens"
        self._counts.refused[reason] += 1
        state = await limit.state(client)
        state.tell(headers)
        return RateLimited(
            f"Rate limit reached: {limit.amount} {limit.unit} a minute.",
            code="rate_limit_exceeded",
            retry_after=state.reset_seconds,
        )


@dataclass(frozen=True, slots=True)
class _State:
    unit: Unit
    amount: int
    remaining: int
    reset_seconds: float

    def tell(self, headers: dict[str, str]) -> None:
        headers[f"x-ratelimit-limit-{self.unit}"] = str(self.amount)
        headers[f"x-ratelimit-remaining-{self.unit}"] = str(self.remaining)
        headers[f"x-ratelimit-reset-{self.unit}"] = f"{math.ceil(self.reset_seconds)}s"


class _Limit:
    """One limit, in shared storage while that works and in this process otherwise."""

    def __init__(self, unit: Unit, amount: int, storage: str, counts: Counters) -> None:
        try:
            from limits import RateLimitItemPerMinute
            from limits.aio.storage import MemoryStorage
            from limits.aio.strategies import SlidingWindowCounterRateLimiter
        except ImportError:
            raise ConfigError(
                "rate limits need the limits package: pip install 'pellucid[gateway]'",
                param=f"rate_limit_{unit}",
            ) from None
        self.unit = unit
        self.amount = amount
        self._item: RateLimitItem = RateLimitItemPerMinute(amount, namespace="pellucid")
        self._local = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared: SlidingWindowCounterRateLimiter | None = None
        if storage != "memory":
            self._shared = SlidingWindowCounterRateLimiter(_redis_storage(storage))

        def count() -> None:
            counts.redis_failures += 1

        self._breaker = Breaker(f"the Redis that counts {unit}", count)

    async def take(self, client: str, cost: int) -> bool:
        """Whether `cost` still fitted; it is counted then and only then."""
        return bool(await self._ask("hit", client, cost=cost)) if cost else True

    async def has_room(self, client: str) -> bool:
        return bool(await self._ask("test", client))

    async def state(self, client: str) -> _State:
        stats = await self._ask("get_window_stats", client)
        reset = max(0.0, stats.reset_time - time.time())
        return _State(self.unit, self.amount, max(0, stats.remaining), reset)

    async def _ask(self, method: str, client: str, **arguments: Any) -> Any:
        shared = self._shared
        if shared is not None:
            missing = object()
            answer: Any = await self._breaker.call(
                lambda: getattr(shared, method)(self._item, self.unit, client, **arguments), missing
            )
            if answer is not missing:
                return answer
        return await getattr(self._local, method)(self._item, self.unit, client, **arguments)


def _redis_storage(url: str) -> Any:
    from limits.aio.storage import RedisStorage

    return RedisStorage(
        f"async+{url.replace('unix://', 'redis+unix://', 1)}",
        implementation="redispy",
        key_prefix="pellucid:limits",
        **redis_options(),
    )


def address_of(client: tuple[str, int] | None) -> str:
    """Whom to charge where there are no keys: an IPv4 address, or an IPv6 customer's network."""
    host = client[0] if client else "local"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
