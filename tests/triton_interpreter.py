"""Triton's interpreter, for this process alone.

Triton decides when it is imported, and again when a kernel is defined, whether to interpret; other
packages import it as well (transformers does). So `tests/conftest.py` imports this before anything
else can, and the variable is gone when other processes are started.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest


@contextmanager
def interpreting() -> Iterator[None]:
    """What is imported within is interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield


with interpreting(), suppress(ImportError):
    import triton.language  # noqa: F401
