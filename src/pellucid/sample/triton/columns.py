"""How rows sample, as kernels read it: a table with a line of 32-bit words for each row."""

from typing import Any, NamedTuple

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

FIELDS = tl.constexpr(8)
TEMPERATURE, TOP_P, MIN_P, TOP_K, SEED, POSITION = (tl.constexpr(i) for i in (0, 1, 2, 3, 4, 6))


class Wanted(NamedTuple):
    """Which stages some row needs; the others are not launched."""

    drawn: bool  # a row is not greedy
    top_k: bool
    nucleus: bool


def table_of(columns: Any, rows: NDArray[np.int64], vocab: int) -> tuple[NDArray[np.int32], Wanted]:
    """`SamplingColumns` at `rows` as int32 [n, FIELDS], and what they want.

    Floats are there as their bits, 64-bit integers as two words, the low one first. A top_k that
    filters nothing is 0.
    """
    temperature = columns.temperature[rows]
    top_p, min_p = columns.top_p[rows], columns.min_p[rows]
    top_k = columns.top_k[rows]
    drawn = temperature != 0.0
    top_k = np.where(drawn & (top_k > 0) & (top_k < vocab), top_k, 0)
    table = np.empty((len(rows), FIELDS.value), np.int32)
    for place, values in ((TEMPERATURE, temperature), (TOP_P, top_p), (MIN_P, min_p)):
        table[:, place.value] = values.astype(np.float32).view(np.int32)
    table[:, TOP_K.value] = top_k
    for place, numbers in ((SEED, columns.seed), (POSITION, columns.position)):
        words = np.ascontiguousarray(numbers[rows], np.int64).view(np.int32).reshape(-1, 2)
        table[:, place.value : place.value + 2] = words
    wanted = Wanted(bool(drawn.any()), bool(top_k.any()), bool((drawn & (top_p < 1.0)).any()))
    return table, wanted


@triton.jit
def float_field(table, row, FIELD: tl.constexpr):
    return tl.load(table + row * FIELDS + FIELD).to(tl.float32, bitcast=True)


@triton.jit
def word_field(table, row, FIELD: tl.constexpr):
    """A 32-bit word as uint64."""
    return tl.load(table + row * FIELDS + FIELD).to(tl.uint32, bitcast=True).to(tl.uint64)
