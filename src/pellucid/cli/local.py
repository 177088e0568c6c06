"""A model without a server, with something to look at while it is fetched and loaded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pellucid.cli.console import notes
from pellucid.cli.download import fetch_all
from pellucid.config import EngineConfig

if TYPE_CHECKING:
    from pellucid.frontend.async_engine import AsyncLLM


@asynccontextmanager
async def open_model(config: EngineConfig) -> AsyncIterator[AsyncLLM]:
    """An engine for this event loop. Raises ModelError or ConfigError if it cannot be had."""
    fetch_all(config)
    with notes().status(f"loading {config.model.model}"):
        from pellucid.engine.client import offline_client
        from pellucid.frontend.async_engine import AsyncLLM

        llm = AsyncLLM(config, offline_client(config))
        await llm.start()
    try:
        yield llm
    finally:
        await llm.close()
