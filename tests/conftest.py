"""Fixtures that every part of the test suite shares."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import tests.triton_interpreter  # noqa: F401 - before anything else imports Triton

# A busy machine is no reason to fail.
hypothesis.settings.register_profile("untimed", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("untimed")

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _smollm2_candidates() -> list[Path]:
    named = os.environ.get("PELLUCID_TEST_MODEL")
    cache = os.environ.get("PELLUCID_CACHE_DIR") or "~/.cache/pellucid"
    found = sorted(Path(cache).expanduser().glob(f"**/{SMOLLM2_FILE}"))
    return ([Path(named)] if named else []) + found


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """What a test of the command line sets up would write to a stream that is gone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's real file, as `make test` or `pellucid pull` put it into the cache."""
    for path in _smollm2_candidates():
        if path.is_file():
            return path
    pytest.skip("the default model is not here: run `pellucid pull smollm2-135m` first")
