"""The application around the real front end and a fake engine, with and without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest

from pellucid.config import EngineConfig, ServerConfig
from pellucid.engine.client import EngineClient
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.server.app import build_app
from tests.frontend.tiny import fake_client, tiny_text

MODEL = "tiny"


def engine_config(**settings: Any) -> EngineConfig:
    return EngineConfig.of(**{"runner": "fake", "num_kv_blocks": 256, **settings})


@asynccontextmanager
async def client_of(
    config: EngineConfig | None = None,
    server: ServerConfig | None = None,
    client: EngineClient | None = None,
    **runner: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of an application in this process; `runner` goes to the FakeRunner."""
    config = config or engine_config()
    engine = client or fake_client(config, **runner)
    async with AsyncLLM(config, engine, text=tiny_text()) as llm:
        app = build_app(llm, server)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            http.app = app  # type: ignore[attr-defined]
            yield http
