"""Decoding steps that are recorded once and replayed: one launch instead of hundreds.

What `NativeExecutor` is for C++ programs, this is for a device whose work is launched from Python,
with one difference: what was recorded holds for the shapes it was recorded with. So a step of
single tokens is filled up to a *bucket*, a number of rows and a bound on the contexts, and there is
a recording for each bucket that has come up:

      rows     1 2 4 8 16 24 32 48 64 96 ... max_num_seqs
      context  1024 2048 4096 ... max_model_len

A recording reads its step from buffers that stay where they are, and works on rows of its own that
fill up the bucket: they have one token at position 0 in a scratch block that no request holds, and
nobody looks at what comes out. In our ops a row's result does not depend on other rows, so filling
up changes no bit of anybody's. A recording ends with the hidden states; logits are computed behind
it, of the rows that are there. Steps that hold prompts, or rows with adapters, run op by op.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, KVLayer
from pellucid.models.base import Model
from pellucid.runner.batch import Ints, StepRows
from pellucid.runner.device import is_out_of_memory
from pellucid.runner.executor import Forward
from pellucid.runner.staging import Array, Staging, num_bytes, views
from pellucid.runner.torch_executor import TorchExecutor, TorchForward

logger = logging.getLogger(__name__)

FIRST_CONTEXT = 1024
SMALL_ROWS = (1, 2, 4, 8, 16, 24)

Compute = Callable[[Tensor, AttentionInputs], Tensor]
Bucket = tuple[int, int]  # rows and context


class Recorder(Protocol):
    """Makes a function that repeats what `function` launched on the device."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Run `function` at least once, and return what runs it again on the same memory."""
        ...


def row_buckets(most: int) -> list[int]:
    """Numbers of rows up to `most`, each at most half as large again as the one before."""
    buckets = [rows for rows in SMALL_ROWS if rows < most]
    rows = 32
    while rows < most:
        buckets += [rows, *([rows * 3 // 2] if rows * 3 // 2 < most else [])]
        rows *= 2
    return [*buckets, most]


def context_buckets(most: int) -> list[int]:
    """Bounds on a context up to `most`, each twice the one before."""
    buckets = []
    context = FIRST_CONTEXT
    while context < most:
        buckets.append(context)
        context *= 2
    return [*buckets, most]


class Recording:
    """The steps of one bucket.

    Args:
        compute: of token ids [rows] and where they stand, [rows, hidden] states.
        states: [at least rows, hidden], whose first rows are filled by `run`.
    """

    def __init__(
        self,
        staging: Staging,
        compute: Compute,
        states: Tensor,
        num_rows: int,
        context: int,
        block_size: int,
    ) -> None:
        self.num_rows = num_rows
        self._staging = staging
        self._compute = compute
        self._states = states
        self._context = context
        self._width = -(-context // block_size)
        # The rows that fill up: token 0 of the scratch block's first slot, alone in its context.
        scratch_block = int(staging.block_tables[staging.scratch_row, 0])
        token_ids, positions, slots, rows = np.zeros((4, num_rows), np.int64)
        slots += scratch_block * block_size
        rows += staging.scratch_row
        self._step: list[Array] = [token_ids, positions, slots, rows, np.ones(num_rows, np.int32)]
        self._fillers = [int(array[0]) for array in self._step]
        self._target = torch.empty(num_bytes(self._step), dtype=torch.uint8, device=staging.device)
        self._query_start = torch.arange(num_rows + 1, dtype=torch.int32, device=staging.device)

    def load(self, step: StepRows) -> None:
        """Send a step to where `run` reads it."""
        self._staging.add_blocks(step)
        count = len(step.rows)
        given: tuple[Array, ...] = (step.token_ids, step.positions, step.slot_mapping, step.rows)
        for array, values, filler in zip(
            self._step, (*given, step.seq_lens), self._fillers, strict=True
        ):
            array[:count] = values
            array[count:] = filler
        self._staging.ring.send(self._step, self._target)

    def run(self) -> None:
        """Compute the step that was loaded. Nothing here depends on the numbers in it."""
        token_ids, positions, slots, rows, seq_lens = views(self._target, self._step)
        inputs = AttentionInputs(
            positions=positions,
            slot_mapping=slots,
            block_tables=self._staging.tables(rows, self._width),
            query_start=self._query_start,
            seq_lens=seq_lens,
            query_lens_list=[],
            seq_lens_list=[],
            context_limit=self._context,
        )
        states = self._compute(self._staging.filled(token_ids, rows), inputs)
        self._states[: self.num_rows].copy_(states)


class GraphExecutor(TorchExecutor):
    """Replays steps of single tokens; leaves all others to the executor it derives from.

    Args:
        recorder: of the device.
        max_num_seqs: rows of the largest step of single tokens.
        max_model_len: the longest context.
    """

    def __init__(
        self,
        model: Model,
        kv: list[KVLayer],
        staging: Staging,
        recorder: Recorder,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        super().__init__(model, kv, staging)
        self._recorder = recorder
        # No method: recordings would hold the executor that holds them.
        self._compute: Compute = lambda token_ids, inputs: model.forward(token_ids, inputs, kv)
        self._block_size = kv[0].k.shape[1]
        self._rows = row_buckets(max_num_seqs)
        self._contexts = context_buckets(max_model_len)
        first = torch.zeros(1, dtype=torch.int64, device=staging.device)
        embedded, _ = model.embed(first, first)
        self._states = embedded.new_zeros(max_num_seqs, embedded.shape[1])
        # None: there was no memory for it.
        self._recordings: dict[Bucket, tuple[Recording, Callable[[], None]] | None] = {}

    @property
    def recorded(self) -> list[Bucket]:
        """Rows and context of the buckets that came up."""
        return list(self._recordings)

    def close(self) -> None:
        self._recordings.clear()

    @torch.no_grad()
    def launch(self, step: StepRows, wanted: Ints) -> Forward:
        if not step.is_decode or step.adapters is not None:
            return super().launch(step, wanted)
        rows = self._rows[bisect_left(self._rows, len(step.rows))]
        context = self._contexts[bisect_left(self._contexts, int(step.seq_lens.max()))]
        bucket = rows, context
        if bucket not in self._recordings:
            self._recordings[bucket] = self._record(bucket, step)
        elif (found := self._recordings[bucket]) is not None:
            recording, replay = found
            recording.load(step)
            replay()
        if self._recordings[bucket] is None:
            return super().launch(step, wanted)
        return TorchForward(self._model, self._states_of(wanted))

    def _record(
        self, bucket: Bucket, step: StepRows
    ) -> tuple[Recording, Callable[[], None]] | None:
        """Record a bucket with its first step, which is computed on the way.

        None if there is no memory: steps of that size run op by op from then on.
        """
        begin = time.monotonic()
        recording = Recording(
            self._staging, self._compute, self._states, *bucket, block_size=self._block_size
        )
        recording.load(step)
        try:
            replay = self._recorder.record(recording.run)
        except RuntimeError as error:
            # Other ranks may have had the memory, and been left waiting in the midst of a step.
            if not is_out_of_memory(error) or self._model.ops.ranks.size > 1:
                raise
            logger.warning("no memory to record steps of %d rows up to %d: run op by op", *bucket)
            return None
        seconds = time.monotonic() - begin
        logger.debug("recorded steps of %d rows up to %d in %.1f s", *bucket, seconds)
        return recording, replay

    def _states_of(self, wanted: Ints) -> Tensor:
        """[n, hidden] of the step that was replayed, until the next one is."""
        if np.array_equal(wanted, np.arange(len(wanted))):
            return self._states[: len(wanted)]
        (rows,) = self._staging.ring.send([wanted])
        return self._states[rows]
