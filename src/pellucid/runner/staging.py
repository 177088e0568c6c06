"""A step's numbers on their way to the device, and what of them stays there.

Everything that a step needs is packed side by side into one buffer and sent by one copy, which the
host does not wait for: the buffer is pinned memory, out of a ring, and is written again only after
the copy out of it has ended. What changes little stays on the device and is told in differences:
the block tables, one row per running request, and each request's last token, which the device may
know before the host does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs
from pellucid.runner.batch import UNKNOWN, Ints, StepRows

Array = NDArray[Any]

ALIGNMENT = 64  # of each array in a buffer; Triton compiles anew for another alignment
# More than one step sends: the next one's copies wait on the device for the step under way.
NUM_BUFFERS = 8
FIRST_BYTES = 1 << 14
DTYPES = {np.dtype(np.int64): torch.int64, np.dtype(np.int32): torch.int32}


class Mark(Protocol):
    """A point in the device's work."""

    def wait(self) -> None:
        """Return when the device has come to it."""
        ...


class Link(Protocol):
    """How bytes get to the device; see `device.Link`."""

    device: torch.device

    def buffer(self, num_bytes: int) -> Tensor:
        """Host memory [num_bytes] uint8 that can be copied from while the host goes on."""
        ...

    def send(self, source: Tensor, target: Tensor) -> None:
        """Copy host memory to the device; `source` must not change until a later mark is met."""
        ...

    def mark(self) -> Mark:
        """A mark behind all that was sent so far."""
        ...


class Ring:
    """Host buffers that take turns."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._buffers: deque[tuple[Tensor, Mark | None]] = deque(
            (link.buffer(FIRST_BYTES), None) for _ in range(NUM_BUFFERS)
        )

    def send(self, arrays: Sequence[Array], target: Tensor | None = None) -> list[Tensor]:
        """Copies of int64 and int32 arrays on the device.

        They are views of `target`, [num_bytes(arrays)] uint8, or else of memory of their own.
        """
        starts, size = _layout(arrays)
        buffer, mark = self._buffers.popleft()
        if mark is not None:
            mark.wait()
        if len(buffer) < size:
            buffer = self._link.buffer(1 << (size - 1).bit_length())
        room = buffer.numpy()
        for array, start in zip(arrays, starts, strict=True):
            room[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view("u1")
        if target is None:
            target = torch.empty(size, dtype=torch.uint8, device=self._link.device)
        self._link.send(buffer[:size], target[:size])
        self._buffers.append((buffer, self._link.mark()))
        return views(target, arrays)


def num_bytes(arrays: Sequence[Array]) -> int:
    """What the arrays take on the device."""
    return _layout(arrays)[1]


def views(target: Tensor, arrays: Sequence[Array]) -> list[Tensor]:
    """Where in `target` each of the arrays arrives: tensors of its shape and dtype."""
    starts, _ = _layout(arrays)
    return [
        target[start : start + array.nbytes].view(DTYPES[array.dtype]).view(array.shape)
        for array, start in zip(arrays, starts, strict=True)
    ]


def _layout(arrays: Sequence[Array]) -> tuple[list[int], int]:
    starts, end = [], 0
    for array in arrays:
        starts.append(end)
        end += math.ceil(array.nbytes / ALIGNMENT) * ALIGNMENT
    return starts, max(end, ALIGNMENT)


class Staging:
    """The device's side of a `Batch`, and the way there.

    Args:
        scratch_block: a block that belongs to no request. Row `scratch_row` of the tables, one
            behind those of the batch, holds nothing else.
    """

    def __init__(
        self, link: Link, max_num_seqs: int, max_blocks: int, scratch_block: int = 0
    ) -> None:
        self.ring = Ring(link)
        self.device = link.device
        self.max_num_seqs = self.scratch_row = max_num_seqs
        shape = (max_num_seqs + 1, max_blocks)
        self.block_tables = torch.zeros(shape, dtype=torch.int32, device=link.device)
        self.block_tables[self.scratch_row] = scratch_block
        self.last_tokens = torch.zeros(max_num_seqs + 1, dtype=torch.int64, device=link.device)
        self._drawn_rows = np.empty(0, np.int64)
        self._drawn_places: Tensor  # the same, on the device

    def load(self, step: StepRows, wanted: Ints) -> tuple[Tensor, AttentionInputs, Tensor]:
        """`Model.forward`'s token_ids and inputs; and `wanted`."""
        self.add_blocks(step)
        lens = np.diff(step.query_start)
        arrays: list[Array] = [step.token_ids, step.positions, step.slot_mapping, step.rows, wanted]
        arrays += [step.query_start, step.seq_lens]
        is_partial = UNKNOWN in step.token_ids
        if is_partial:
            arrays.append(np.repeat(step.rows, lens))
        sent = self.ring.send(arrays)
        token_ids, positions, slots, rows, wanted_rows, query_start, seq_lens = sent[:7]
        if is_partial:
            token_ids = self.filled(token_ids, sent[7])
        inputs = AttentionInputs(
            positions=positions,
            slot_mapping=slots,
            block_tables=self.tables(rows, step.block_tables.shape[1]),
            query_start=query_start,
            seq_lens=seq_lens,
            query_lens_list=lens.tolist(),
            seq_lens_list=step.seq_lens.tolist(),
        )
        return token_ids, inputs, wanted_rows

    def add_blocks(self, step: StepRows) -> None:
        """Append what the step's requests were given to their rows."""
        if not step.new_blocks:
            return
        width = self.block_tables.shape[1]
        places = [
            np.arange(row * width + held, row * width + held + len(blocks))
            for row, held, blocks in step.new_blocks
        ]
        blocks = np.array([b for _, _, added in step.new_blocks for b in added], np.int32)
        where, what = self.ring.send([np.concatenate(places), blocks])
        self.block_tables.view(-1).index_copy_(0, where, what)

    def tables(self, rows: Tensor, width: int) -> Tensor:
        """The first `width` blocks of each of the rows: [rows, width]."""
        return self.block_tables[:, :width].index_select(0, rows)

    def filled(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        """`token_ids` [T] of `rows` [T], with the last token drawn for a row where UNKNOWN."""
        return torch.where(token_ids == UNKNOWN, self.last_tokens[rows], token_ids)

    def remember(self, rows: Ints, token_ids: Tensor) -> None:
        """Keep the tokens [n] that were just drawn for the rows."""
        if not np.array_equal(rows, self._drawn_rows):
            self._drawn_rows = rows.copy()
            (self._drawn_places,) = self.ring.send([rows])
        self.last_tokens.index_copy_(0, self._drawn_places, token_ids)
