"""Fixtures of the tests that run a server's process or drive a browser."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.browser import CHROMIUM, browser
from tests.e2e.serving import base_url, serving
from tests.frontend.tiny import LETTERS
from tests.server.live import Live, live

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LLAMA_CPP = pytest.param(
    "llama-cpp",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("llama_cpp") is None,
        reason="llama-cpp-python is not installed: pip install -e '.[llamacpp]'",
    ),
)


@pytest.fixture(scope="module", params=["torch", LLAMA_CPP])
def runner(request: pytest.FixtureRequest) -> str:
    """What executes the steps of a server of the default model."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def curl(smollm2_path: Path, runner: str) -> Iterator[str]:
    """What such a server prints; see `started`."""
    with serving(smollm2_path, "--runner", runner, "--max-num-seqs", "32") as (printed, _):
        yield printed


@pytest.fixture(scope="module")
def url(curl: str) -> str:
    return base_url(curl)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the PATH")
    with browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def slow() -> Iterator[Live]:
    """Six requests at a time, 50 letters a second each."""
    runner = {"step_seconds": 0.02, "num_blocks": 512, "answer_vocab": LETTERS}
    with live(runner=runner, max_num_seqs=6) as running:
        yield running
