"""What keeps a dead Redis from slowing requests down."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pellucid.errors import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")

COMMAND_TIMEOUT = 0.5  # seconds; a Redis nearby answers in a thousandth of that
REST_SECONDS = 5.0  # between two attempts at a Redis that failed
MAX_AT_ONCE = 64  # commands, and with them connections


class Breaker:
    """Calls somebody who may be dead: after one failure nobody calls again for a while."""

    def __init__(self, what: str, on_failure: Callable[[], None] = lambda: None) -> None:
        self._what = what
        self._on_failure = on_failure
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._resting_until = 0.0
        self._failing = False

    async def call(self, make: Callable[[], Awaitable[T]], otherwise: T) -> T:
        """What `make()` gives, or `otherwise` if it fails, takes too long or is not tried."""
        if time.monotonic() < self._resting_until:
            return otherwise
        try:
            async with self._slots, asyncio.timeout(2 * COMMAND_TIMEOUT):
                result = await make()
        except Exception as error:  # the client has a zoo of them; none may end a request
            self._resting_until = time.monotonic() + REST_SECONDS
            self._on_failure()
            if not self._failing:  # once, not every few seconds
                # The type alone: messages of Redis clients may hold the address with its password.
                logger.warning("%s failed (%s); going on without", self._what, type(error).__name__)
            self._failing = True
            return otherwise
        if self._failing:
            self._failing = False
            logger.warning("%s is back", self._what)
        return result


def redis_options() -> dict[str, Any]:
    """Keyword arguments for a client of redis-py: fail soon, and leave the rest to the breaker.

    Raises ConfigError naming the extra if redis-py is not installed.
    """
    try:
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise ConfigError(
            "a redis:// address needs the redis package: pip install 'pellucid[gateway]'"
        ) from None
    return {
        "socket_timeout": COMMAND_TIMEOUT,
        "socket_connect_timeout": COMMAND_TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
    }
