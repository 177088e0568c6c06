"""Tests' way around an `AsyncLLM`, with an engine that fakes its tokens or one that is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from pellucid.config import EngineConfig
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.frontend.outputs import Delta
from tests.frontend.tiny import ScriptedClient, fake_client, tiny_text

CONFIG = EngineConfig.of(runner="fake", block_size=4)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def with_fake(
    test: Callable[[AsyncLLM], Coroutine[Any, Any, None]],
    config: EngineConfig = CONFIG,
    **runner: Any,
) -> None:
    async def body() -> None:
        async with AsyncLLM(config, fake_client(config, **runner), text=tiny_text()) as llm:
            await test(llm)

    run(body())


def with_script(
    test: Callable[[AsyncLLM, ScriptedClient], Coroutine[Any, Any, None]],
    config: EngineConfig = CONFIG,
) -> None:
    async def body() -> None:
        client = ScriptedClient()
        async with AsyncLLM(config, client, text=tiny_text()) as llm:
            await test(llm, client)

    run(body())


async def collect(llm: AsyncLLM, *args: Any, **kwargs: Any) -> list[Delta]:
    return [delta async for delta in llm.generate(*args, **kwargs)]


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)
