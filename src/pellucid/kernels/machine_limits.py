"""How fast this machine reads memory and multiplies, measured: what no kernel can exceed."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass

import numpy as np

READ_BYTES = 256 << 20  # beyond any cache
SECONDS = 0.3  # per limit; the best run counts
ROUNDS = 400_000  # of multiplications at a time, a millisecond or so


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes and operations per second with all threads; a product and its sum are two operations.

    0 where the kernels have no vector instructions for the arithmetic.
    """

    memory: float
    int8: float
    bfloat16: float
    float32: float

    def better(self, other: Limits) -> Limits:
        """The larger of each."""
        return Limits(*map(max, zip(astuple(self), astuple(other), strict=True)))


def measure_limits(threads: int) -> Limits:
    """Measure for a second or so."""
    from pellucid import _native

    with ThreadPoolExecutor(threads) as pool:

        def on_all_threads(work: Callable[[int], int]) -> float:
            """The most that all threads together did per second."""
            best, end = 0.0, time.perf_counter() + SECONDS
            while time.perf_counter() < end:
                begin = time.perf_counter()
                done = sum(pool.map(work, range(threads)))
                best = max(best, done / (time.perf_counter() - begin))
            return best

        data = np.ones(READ_BYTES // 8, np.uint64)
        parts = np.array_split(data, threads)

        def read(thread: int) -> int:
            _native.read_all(parts[thread])
            return parts[thread].nbytes

        def multiply(arithmetic: str) -> float:
            return on_all_threads(lambda _: _native.multiply_in_registers(arithmetic, ROUNDS))

        return Limits(
            on_all_threads(read), multiply("int8"), multiply("bfloat16"), multiply("float32")
        )
