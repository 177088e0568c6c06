"""How rows sample, as kernels read it: a table on the GPU with a line of 32-bit words per row.

It is told in differences. The host knows what every line holds, and sends those that are to hold
something else: of rows that are new, or have not sampled for a while. A row that goes on sampling
costs nothing: what changes in it is the position, which the kernel that draws moves on by one.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from pellucid.sample.transfer import to_device

FIELDS = tl.constexpr(8)
TEMPERATURE, TOP_P, MIN_P, TOP_K, SEED, POSITION = (tl.constexpr(i) for i in (0, 1, 2, 3, 4, 6))


class Wanted(NamedTuple):
    """Which stages some row needs; the others are not launched."""

    drawn: bool  # a row is not greedy
    top_k: bool
    nucleus: bool


class Table:
    """Lines of all rows, on the device and as the host knows them."""

    def __init__(self) -> None:
        self._held = np.empty((0, FIELDS.value), np.int32)
        self._lines = np.empty(0, np.int64)
        self._device_table: Tensor
        self._device_lines: Tensor

    def update(
        self, columns: Any, rows: NDArray[np.int64], vocab: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Wanted]:
        """Bring the lines of `SamplingColumns` at `rows` up to date, for one draw of each.

        Returns:
            the table, int32 [all rows, FIELDS]; the lines to draw for, int64 [n]; what they want.
        """
        if len(self._held) != len(columns.position):
            self._held = np.zeros((len(columns.position), FIELDS.value), np.int32)
            self._device_table = torch.zeros(self._held.shape, dtype=torch.int32, device=device)
        if not np.array_equal(rows, self._lines):
            self._lines = rows.copy()
            self._device_lines = to_device(self._lines, device)
        lines, wanted = lines_of(columns, rows, vocab)
        changed = (lines != self._held[rows]).any(axis=1)
        if changed.any():
            self._send(rows[changed], lines[changed])
        positions = lines[:, POSITION.value :].view(np.int64)
        positions += 1  # as the draw will do
        self._held[rows] = lines
        return self._device_table, self._device_lines, wanted

    def _send(self, rows: NDArray[np.int64], lines: NDArray[np.int32]) -> None:
        packed = np.concatenate((rows[:, None].view(np.int32), lines), axis=1)
        sent = to_device(packed, self._device_table.device)
        self._device_table.index_copy_(0, sent.view(torch.int64)[:, 0], sent[:, 2:])


def lines_of(columns: Any, rows: NDArray[np.int64], vocab: int) -> tuple[NDArray[np.int32], Wanted]:
    """`SamplingColumns` at `rows` as int32 [n, FIELDS], and what they want.

    Floats are there as their bits, 64-bit integers as two words, the low one first. A top_k that
    filters nothing is 0.
    """
    temperature = columns.temperature[rows]
    top_p, min_p = columns.top_p[rows], columns.min_p[rows]
    top_k = columns.top_k[rows]
    drawn = temperature != 0.0
    top_k = np.where(drawn & (top_k > 0) & (top_k < vocab), top_k, 0)
    lines = np.empty((len(rows), FIELDS.value), np.int32)
    for place, values in ((TEMPERATURE, temperature), (TOP_P, top_p), (MIN_P, min_p)):
        lines[:, place.value] = values.astype(np.float32).view(np.int32)
    lines[:, TOP_K.value] = top_k
    for place, numbers in ((SEED, columns.seed), (POSITION, columns.position)):
        words = np.ascontiguousarray(numbers[rows], np.int64).view(np.int32).reshape(-1, 2)
        lines[:, place.value : place.value + 2] = words
    wanted = Wanted(bool(drawn.any()), bool(top_k.any()), bool((drawn & (top_p < 1.0)).any()))
    return lines, wanted


@triton.jit
def line_of(table, lines, row):
    """Where the line of a row of logits begins."""
    return table + tl.load(lines + row) * FIELDS


@triton.jit
def float_field(line, FIELD: tl.constexpr):
    return tl.load(line + FIELD).to(tl.float32, bitcast=True)


@triton.jit
def word_field(line, FIELD: tl.constexpr):
    """A 32-bit word as uint64."""
    return tl.load(line + FIELD).to(tl.uint32, bitcast=True).to(tl.uint64)


@triton.jit
def move_on(line):
    """Add one to the position."""
    position = (word_field(line, POSITION + 1) << 32 | word_field(line, POSITION)) + 1
    tl.store(line + POSITION, position.to(tl.uint32).to(tl.int32, bitcast=True))
    tl.store(line + (POSITION + 1), (position >> 32).to(tl.uint32).to(tl.int32, bitcast=True))
