"""Starts the engine again when it dies, ever more slowly, and gives up when that is no use."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from pellucid.config import EngineConfig
from pellucid.engine.client import EngineClient, ProcessClient
from pellucid.errors import BadRequest, EngineDead, PellucidError
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

FIRST_DELAY = 0.5  # seconds; doubles with every failure in a row
LONGEST_DELAY = 30.0
STABLE_SECONDS = 60.0  # an engine that lived this long did not fail at its start


class Supervisor:
    """Watches one `AsyncLLM` that was started.

    Args:
        max_failures: restarts in a row that may fail, or last less than a minute.
        make_client: a new engine; by default a process with as much KV memory as the first had.
        warm: whether a new engine answers a request of ours before it counts as revived.
        on_restart: called with each new engine.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        max_failures: int,
        *,
        make_client: Callable[[], EngineClient] | None = None,
        warm: bool = True,
        on_restart: Callable[[], object] = lambda: None,
    ) -> None:
        self._llm = llm
        self._max_failures = max_failures
        self._make_client = make_client or (lambda: ProcessClient(_same_pool(llm)))
        self._warm = warm
        self._start_seconds = 1.0  # what the last start took: a hint for those who wait
        self._on_restart = on_restart
        self.reviving = False
        if max_failures:  # already in the moment when the engine dies
            llm.retry_after = FIRST_DELAY + self._start_seconds

    async def run(self) -> None:
        """Until `llm` is closed, or this is cancelled. Raises EngineDead when it gives up."""
        failures = 0
        while True:
            started = time.monotonic()
            await self._llm.died.wait()
            if self._llm.closed:
                return
            lived = time.monotonic() - started
            failures = failures + 1 if lived < STABLE_SECONDS else 1
            self.reviving = True
            failures = await self._revive(failures)
            self.reviving = False

    async def _revive(self, failures: int) -> int:
        """Start engines until one stays up; returns how often that has failed in a row."""
        while failures <= self._max_failures and not self._llm.closed:
            delay = min(FIRST_DELAY * 2 ** (failures - 1), LONGEST_DELAY)
            self._llm.retry_after = delay + self._start_seconds
            logger.warning(
                "the engine is dead; starting another in %.1f s (%d of %d)",
                *(delay, failures, self._max_failures),
            )
            await asyncio.sleep(delay)
            began = time.monotonic()
            try:
                await self._llm.restart(self._make_client())
                if self._warm:
                    await warm_up(self._llm)
            except (PellucidError, OSError) as error:
                logger.error("the new engine failed: %s", error)
                failures += 1
                continue
            self._start_seconds = time.monotonic() - began
            self._on_restart()
            logger.warning("a new engine is up after %.1f s", self._start_seconds)
            return failures
        if self._llm.closed:
            return failures
        self._llm.retry_after = None
        raise EngineDead(f"the engine failed {failures} times in a row; giving up")


async def warm_up(llm: AsyncLLM) -> None:
    """One small request from text to text, so that the first client does not pay for what only the
    first request costs. Raises EngineDead if it kills the engine."""
    params = SamplingParams(max_tokens=4, temperature=0.8, top_p=0.9, seed=0, ignore_eos=True)
    began = time.monotonic()
    try:
        try:
            prompt: str | list[int] = await llm.chat_prompt([{"role": "user", "content": "Hello"}])
        except BadRequest:  # no chat template
            prompt = "Hello"
        generation = await llm.submit(prompt, params)
        generation.retries_left = 0  # whoever waits for this is who would restart the engine
        await generation.result()
    except BadRequest as error:  # a context of a few tokens
        logger.warning("no warm-up: %s", error.message)
        return
    logger.info("warmed up in %.2f s", time.monotonic() - began)


def _same_pool(llm: AsyncLLM) -> EngineConfig:
    """The first engine's limits were told to clients and must hold for the next one."""
    cache = msgspec.structs.replace(llm.config.cache, num_kv_blocks=llm.info.num_kv_blocks)
    return msgspec.structs.replace(llm.config, cache=cache)
