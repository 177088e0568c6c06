"""Fixtures of the tests that drive a browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.e2e.browser import CHROMIUM, browser
from tests.frontend.tiny import LETTERS
from tests.server.live import Live, live

if TYPE_CHECKING:
    from playwright.sync_api import Browser


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
