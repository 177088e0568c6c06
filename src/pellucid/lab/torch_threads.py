"""With how many threads torch computes: one number for the whole process, which engines set.

An engine on compiled kernels leaves torch a single thread, and would leave it to whatever computes
with torch beside it or after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from pellucid.runner.device import compute_threads, keep_freed_memory

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def same_start() -> Iterator[None]:
    """What an experiment finds set in this process, whichever ran before it.

    Torch has all cores, and malloc keeps what is freed from the beginning, as it does once there
    was an engine: that cannot be taken back.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(compute_threads())
    keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_threads(count: int, work: Callable[P, T]) -> Callable[P, T]:
    """`work`, for which torch always has `count` threads."""

    def with_threads(*args: P.args, **kwargs: P.kwargs) -> T:
        torch.set_num_threads(count)
        return work(*args, **kwargs)

    return with_threads
