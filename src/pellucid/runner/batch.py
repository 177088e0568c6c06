"""Permanent rows for the running requests, gathered into the inputs of each step.

A request's tokens and blocks stay in its row from admission to the end, whatever happens around it;
a step copies out what it computes, by numpy over all requests at once. Only block tables are copied
whole, one number per block of context, because attention reads them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.lora import NO_ADAPTER
from pellucid.runner.base import Chunk, NewRow

Ints = NDArray[np.int64]

UNKNOWN = -1  # a token that was drawn on the device and has yet to reach the host


Value = TypeVar("Value")


def entries_of(table: Mapping[int, Value], rows: Ints) -> list[tuple[int, Value]]:
    """(place, entry) of the rows that have an entry, which in most tables are few or none."""
    if not table:
        return []
    return [(i, table[row]) for i, row in enumerate(rows.tolist()) if row in table]


@dataclass(slots=True)
class StepRows:
    """The tokens of one step, flat: chunk i owns the elements query_start[i]:query_start[i + 1]."""

    rows: Ints  # [S] row of each chunk's request
    query_start: NDArray[np.int32]  # [S + 1]
    seq_lens: NDArray[np.int32]  # [S] of the sequence, up to the end of the chunk
    token_ids: Ints  # [T]; UNKNOWN where only the device knows
    positions: Ints  # [T]
    slot_mapping: Ints  # [T]
    block_tables: NDArray[np.int32]  # [S, widest]
    # (row, its number of blocks before, what was appended) where a block table grew.
    new_blocks: list[tuple[int, int, list[int]]] = field(default_factory=list)
    adapters: NDArray[np.int32] | None = None  # [T] numbers or NO_ADAPTER; None: no row has one

    @classmethod
    def of_text(cls, token_ids: Ints, block_size: int) -> StepRows:
        """A text of its own, [T], from its first token on, in the first blocks of the pool."""
        num_tokens, places = len(token_ids), np.arange(len(token_ids))
        return cls(
            rows=np.zeros(1, np.int64),
            query_start=np.array([0, num_tokens], np.int32),
            seq_lens=np.array([num_tokens], np.int32),
            token_ids=token_ids,
            positions=places,
            slot_mapping=places,
            block_tables=np.arange(-(-num_tokens // block_size), dtype=np.int32)[None],
        )

    @property
    def is_decode(self) -> bool:
        """Every chunk is a single token."""
        return len(self.token_ids) == len(self.rows)


class Batch:
    """Tokens and block tables, one row per running request."""

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        # A sampled token may stand right behind the longest context.
        self.token_ids = np.zeros((max_num_seqs, max_model_len + 1), np.int32)
        self.num_tokens = np.zeros(max_num_seqs, np.int64)
        self.num_prompt_tokens = np.zeros(max_num_seqs, np.int64)
        self._block_tables = np.zeros((max_num_seqs, -(-max_model_len // block_size)), np.int32)
        self._num_blocks = np.zeros(max_num_seqs, np.int64)
        self._adapters = np.full(max_num_seqs, NO_ADAPTER, np.int32)
        self._row_of: dict[str, int] = {}
        self._free = list(range(max_num_seqs - 1, -1, -1))
        self._counted = np.arange(max_num_seqs + 1, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._row_of)

    def drop(self, request_id: str) -> int | None:
        """Free a request's row and return it; None if it has none."""
        row = self._row_of.pop(request_id, None)
        if row is not None:
            self._block_tables[row, : self._num_blocks[row]] = 0
            self._num_blocks[row] = 0
            self._free.append(row)
        return row

    def add(self, new: NewRow) -> int:
        """Make a row for a request and return it."""
        row = self._free.pop()
        self._row_of[new.request_id] = row
        count = len(new.token_ids)
        self.token_ids[row, :count] = new.token_ids
        self.num_tokens[row] = count
        self.num_prompt_tokens[row] = new.num_prompt_tokens
        self._adapters[row] = NO_ADAPTER if new.adapter is None else new.adapter
        return row

    def row_of(self, request_id: str) -> int:
        return self._row_of[request_id]

    def append(self, rows: Ints, token_ids: Ints) -> None:
        """Append one token to each of the rows."""
        self.token_ids[rows, self.num_tokens[rows]] = token_ids
        self.num_tokens[rows] += 1

    def rewrite(self, row: int, start: int, token_ids: Ints) -> None:
        """Let a row's tokens from `start` on be these."""
        self.token_ids[row, start : start + len(token_ids)] = token_ids
        self.num_tokens[row] = start + len(token_ids)

    def fill(self, rows: Ints, places: Ints, token_ids: Ints) -> None:
        """Put in tokens that were appended as UNKNOWN; not where a row has changed hands since."""
        waits = self.token_ids[rows, places] == UNKNOWN
        self.token_ids[rows[waits], places[waits]] = token_ids[waits]

    def known_tokens(self, row: int) -> NDArray[np.int32]:
        """All tokens of a row, as a view."""
        return self.token_ids[row, : self.num_tokens[row]]

    def gather(self, chunks: list[Chunk]) -> StepRows:
        """Take in the chunks' new blocks and collect their tokens.

        Raises:
            ValueError: a chunk reaches beyond its request's known tokens or its blocks, where it
                would read or write what belongs to others.
        """
        row_of_chunk = [self._row_of[chunk.request_id] for chunk in chunks]
        new_blocks = [
            (row, self._extend_blocks(row, chunk.new_block_ids), chunk.new_block_ids)
            for chunk, row in zip(chunks, row_of_chunk, strict=True)
            if chunk.new_block_ids
        ]
        rows = np.array(row_of_chunk, np.int64)
        num_known = self.num_tokens[rows]
        starts = np.array([chunk.start for chunk in chunks], np.int64)
        counts = [chunk.num_tokens for chunk in chunks]
        if counts.count(1) == len(counts):  # nothing but decodes, the common case
            ends, row_of_token, positions = starts + 1, rows, starts
            query_start = self._counted[: len(rows) + 1]
        else:
            num_known += self._write_drafts(row_of_chunk, chunks)
            ends = starts + counts
            query_start, row_of_token, positions = _flatten(rows, starts, np.array(counts))
        self._check(chunks, rows, ends, num_known)

        blocks, offsets = np.divmod(positions, self.block_size)
        slots = self._block_tables[row_of_token, blocks] * np.int64(self.block_size) + offsets
        adapters = self._adapters[row_of_token]
        widest = -(-int(ends.max(initial=0)) // self.block_size)
        return StepRows(
            rows=rows,
            query_start=query_start,
            seq_lens=ends.astype(np.int32),
            token_ids=self.token_ids[row_of_token, positions].astype(np.int64),
            positions=positions,
            slot_mapping=slots,
            block_tables=self._block_tables[rows, :widest],
            new_blocks=new_blocks,
            adapters=adapters if (adapters != NO_ADAPTER).any() else None,
        )

    def _extend_blocks(self, row: int, block_ids: list[int]) -> int:
        """Returns how many blocks the row had."""
        held = int(self._num_blocks[row])
        self._block_tables[row, held : held + len(block_ids)] = block_ids
        self._num_blocks[row] = held + len(block_ids)
        return held

    def _write_drafts(self, rows: list[int], chunks: list[Chunk]) -> list[int]:
        """Behind the known tokens, where `append` overwrites them; returns how many of each."""
        for row, chunk in zip(rows, chunks, strict=True):
            if chunk.drafts:
                known = int(self.num_tokens[row])
                self.token_ids[row, known : known + len(chunk.drafts)] = chunk.drafts
        return [len(chunk.drafts) for chunk in chunks]

    def _check(self, chunks: list[Chunk], rows: Ints, ends: Ints, num_known: Ints) -> None:
        limits = np.minimum(num_known, self._num_blocks[rows] * self.block_size)
        for index in (ends > limits).nonzero()[0]:
            chunk = chunks[index]
            raise ValueError(
                f"chunk {chunk} ends behind token {limits[index]}, the last that is known and has"
                " a block"
            )


def _flatten(rows: Ints, starts: Ints, counts: Ints) -> tuple[NDArray[np.int32], Ints, Ints]:
    """Where each chunk's tokens begin among those of the step; row and position of each token."""
    query_start = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(counts, out=query_start[1:])
    positions = np.arange(query_start[-1]) + np.repeat(starts - query_start[:-1], counts)
    return query_start.astype(np.int32), np.repeat(rows, counts), positions
