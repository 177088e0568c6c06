"""One server for all tests that leave it as they found it, and one whose engine is a script."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pellucid.config import ServerConfig
from tests.frontend.tiny import ScriptedClient
from tests.server.live import Live, live

LIMITS = ServerConfig(max_body_bytes=65536, max_prompts=8, max_n=4, max_logprobs=5)


@pytest.fixture(scope="package")
def site() -> Iterator[Live]:
    with live(LIMITS) as running:
        yield running


@pytest.fixture
def script() -> ScriptedClient:
    return ScriptedClient()


@pytest.fixture
def scripted(script: ScriptedClient) -> Iterator[Live]:
    with live(client=script) as site:
        yield site
