"""Small programs for tests: what goes in are the rows of an embedding table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

native = pytest.importorskip("pellucid._native", reason="the native kernels are not built")

MAX_ROWS = 400


class Recorder:
    """Records a program whose values are `Columns`, one buffer for each unless said otherwise."""

    def __init__(self) -> None:
        self.program = native.Program()

    def new(self, columns: int) -> Any:
        return native.Columns(self.program.add_buffer(columns), 0, columns)

    def rows(self, values: Tensor) -> Any:
        """`values` [n, columns] float32: row i of the step has the row that its token id names."""
        out = self.new(values.shape[1])
        self.program.embedding(out, native.pack_float(values.numpy()))
        return out

    def op(self, name: str, columns: int, *arguments: object) -> Any:
        """The result of an op that has one."""
        out = self.new(columns)
        getattr(self.program, name)(out, *arguments)
        return out

    def finish(self, output: Any, max_rows: int = MAX_ROWS) -> Any:
        self.program.finalize(output, max_rows)
        return self.program


def key_rows(blocks: Tensor) -> Tensor:
    """Keys as the kernels keep them, by slots: the inverse of what `native_layout` does."""
    size, heads = blocks.shape[1:3]
    words = blocks.view(torch.int32).view(len(blocks), heads, -1, size)
    return words.permute(0, 3, 1, 2).contiguous().view(blocks.dtype)


def by_slot(blocks: Tensor) -> Tensor:
    """The same for values and scales."""
    size, heads = blocks.shape[1:3]
    return blocks.view(len(blocks), heads, size, *blocks.shape[3:]).transpose(1, 2).contiguous()


def slices(columns: Any, *sizes: int) -> list[Any]:
    """Consecutive columns of a value."""
    starts = np.cumsum([0, *sizes[:-1]]) + columns.begin
    return [
        native.Columns(columns.buffer, int(start), size)
        for start, size in zip(starts, sizes, strict=True)
    ]


def run(
    program: Any,
    token_ids: Tensor | range,
    width: int,
    *,
    positions: Tensor | None = None,
    slots: Tensor | None = None,
    tables: Tensor | None = None,
    query_start: Tensor | None = None,
    seq_lens: Tensor | None = None,
    sampled: Tensor | None = None,
    threads: int = 2,
) -> Tensor:
    """The program's output, poisoned before, as is all memory between its ops."""
    ids = torch.tensor(list(token_ids), dtype=torch.int64)
    rows = len(ids)
    zeros = torch.zeros(rows, dtype=torch.int64)
    sampled = torch.arange(rows) if sampled is None else sampled
    out = torch.full((len(sampled), width), torch.nan)
    arrays = [
        ids,
        zeros if positions is None else positions,
        zeros if slots is None else slots,
        torch.zeros(0, 0, dtype=torch.int32) if tables is None else tables,
        torch.zeros(1, dtype=torch.int32) if query_start is None else query_start,
        torch.zeros(0, dtype=torch.int32) if seq_lens is None else seq_lens,
        sampled,
        out,
    ]
    program.poison()
    program.run(native.ThreadTeam(threads), *(array.numpy() for array in arrays))
    return out


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    """Relative to the largest value: what differs is the order of sums."""
    scale = max(expected.abs().max().item(), 1e-30) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance * scale
    )
