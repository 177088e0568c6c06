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
up changes no bit of anybody's. Steps that hold prompts run op by op.
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
from pellucid.runner.executor import MAX_LOGITS_BYTES, Forward, TorchExecutor
from pellucid.runner.staging import Array, Staging, num_bytes, views

logger = logging.getLogger(__name__)

FIRST_CONTEXT = 1024
SMALL_ROWS = (1, 2, 4, 8, 16, 24)


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
        compute: of token ids [rows] and where they stand, [rows, vocab] logits.
        logits: [at least rows, vocab] float32, whose first rows are filled by `run`.
    """

    def __init__(
        self,
        staging: Staging,
        compute: Callable[[Tensor, AttentionInputs], Tensor],
        logits: Tensor,
        num_rows: int,
        context: int,
        block_size: int,
    ) -> None:
        self.num_rows = num_rows
        self._staging = staging
        self._compute = compute
        self._logits = logits
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
        logits = self._compute(self._staging.filled(token_ids, rows), inputs)
        self._logits[: self.num_rows].copy_(logits)


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
        vocab_size = model.config.vocab_size
        most_rows = max(1, min(max_num_seqs, MAX_LOGITS_BYTES // (4 * vocab_size)))
        self._rows = row_buckets(most_rows)
        self._contexts = context_buckets(max_model_len)
        self._logits = torch.zeros(most_rows, vocab_size, device=staging.device)
        self._recordings: dict[tuple[int, int], tuple[Recording, Callable[[], None]]] = {}

    @property
    def recorded(self) -> list[tuple[int, int]]:
        """Rows and context of the buckets that came up."""
        return list(self._recordings)

    @torch.no_grad()
    def launch(self, step: StepRows, wanted: Ints) -> Forward:
        if not step.is_decode or len(step.rows) > self._rows[-1]:
            return super().launch(step, wanted)
        rows = self._rows[bisect_left(self._rows, len(step.rows))]
        context = self._contexts[bisect_left(self._contexts, int(step.seq_lens.max()))]
        found = self._recordings.get((rows, context))
        if found is None:
            self._record(rows, context, step)
        else:
            recording, replay = found
            recording.load(step)
            replay()
        return ReplayedForward(self._logits, wanted)

    def _record(self, num_rows: int, context: int, step: StepRows) -> None:
        """Record a bucket with its first step, which is computed on the way."""
        begin = time.monotonic()
        recording = Recording(
            self._staging, self._compute, self._logits, num_rows, context, self._kv[0].k.shape[1]
        )
        recording.load(step)
        replay = self._recorder.record(recording.run)
        self._recordings[num_rows, context] = recording, replay
        seconds = time.monotonic() - begin
        logger.debug("recorded steps of %d rows up to %d in %.1f s", num_rows, context, seconds)

    def _compute(self, token_ids: Tensor, inputs: AttentionInputs) -> Tensor:
        return self._model.logits(self._model.forward(token_ids, inputs, self._kv))


class ReplayedForward:
    """Logits where a replay leaves them. Implements `Forward`."""

    def __init__(self, logits: Tensor, wanted: Ints) -> None:
        self._logits = logits
        self._wanted = wanted

    def logits(self, begin: int, end: int) -> Tensor:
        """A copy, which outlives the next replay."""
        rows = self._wanted[begin:end]
        if np.array_equal(rows, np.arange(begin, end)):
            return self._logits[begin:end].clone()
        return self._logits[torch.from_numpy(rows).to(self._logits.device)]
