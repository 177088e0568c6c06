"""Triton's interpreter, for this process alone, unless PELLUCID_TEST_DEVICE names a GPU.

Triton decides when it is imported, and again when a kernel is defined, whether to interpret; other
packages import it as well (transformers does). So `tests/conftest.py` imports this before anything
else can, and the variable is gone when other processes are started.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest


@contextmanager
def interpreting() -> Iterator[None]:
    """What is imported within is interpreted, where there is no GPU to run it."""
    if (os.environ.get("PELLUCID_TEST_DEVICE") or "cpu").startswith("cuda"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield


with interpreting(), suppress(ImportError):
    import triton.language  # noqa: F401
