"""A step as one call of a program that was recorded of the model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, KVLayer
from pellucid.kernels.native import NativeOps
from pellucid.models.base import Model
from pellucid.runner.batch import Ints, StepRows
from pellucid.runner.executor import Likeliest
from pellucid.sample.backends import NativeSampler, Sampler

if TYPE_CHECKING:
    from pellucid import _native

# Logits held at once: those of a whole prompt over a large vocabulary would take gigabytes.
MAX_LOGITS_BYTES = 256 << 20
# Memory for logits that is kept from step to step: to give megabytes back to the system and take
# them anew costs a step of many sequences a good part of a millisecond.
KEPT_LOGITS_BYTES = 64 << 20
# What outliers are learned from: tokens spread over the vocabulary.
SAMPLE_TOKENS = 64
SAMPLE_STRIDE = 7919


class NativeExecutor:
    """The whole step as one call of a recorded program.

    There are up to four: of steps in which no row has an adapter, and of others; each ending with
    the head, or before it. All but the first are recorded when they are first needed.
    """

    def __init__(
        self,
        model: Model,
        ops: NativeOps,
        kv: list[KVLayer],
        max_rows: int,
        max_model_len: int,
        team: _native.ThreadTeam,
    ) -> None:
        self.team = team
        self.sampler: Sampler[Any] = NativeSampler(team)
        # Little is left to torch. Its idle threads spin for a while after each op, on the cores
        # that the team needs next: with them a step of one sequence takes half as long again.
        torch.set_num_threads(1)
        self._model = model
        self._ops = ops
        self._kv = kv
        self._max_rows = max_rows
        self._max_model_len = max_model_len
        self._vocab_size = model.config.vocab_size
        self._hidden_size = model.config.hidden_size
        self._kept = np.empty((0, self._vocab_size), np.float32)
        self._others: dict[tuple[bool, bool], _native.Program] = {}  # has head, has adapters
        self._program = self._record(has_head=True, adapted=False)

    def _learn_outliers(self, program: _native.Program, columns: int) -> None:
        """Show a program some tokens, so that it finds the columns it must not round.

        Which these are is a property of the model, hardly of the text. Always the same tokens, so
        that a model's numbers are the same after every start, and in all its programs. What this
        leaves in the first blocks of the KV pool is the caller's affair.
        """
        num_blocks, block_size = self._kv[0].k.shape[:2]
        room = num_blocks * block_size
        length = min(SAMPLE_TOKENS, self._max_rows, self._max_model_len, room)
        token_ids = np.arange(length) * SAMPLE_STRIDE % self._vocab_size
        step = StepRows.of_text(token_ids, block_size)
        rows = step.positions[: self.max_logits]
        _call(program.learn_outliers, step, rows, np.empty((len(rows), columns), np.float32))

    def launch(self, step: StepRows, wanted: Ints) -> NativeForward:
        return NativeForward(self, step, wanted)

    def likeliest(self, step: StepRows, wanted: Ints) -> Likeliest | None:
        program = self._program_for(step, has_head=True)
        if not program.can_find_likeliest:
            return None
        found = Likeliest(np.empty(len(wanted), np.int64), np.empty(len(wanted), np.bool_))
        find = partial(program.find_likeliest, self.team)
        _call(find, step, wanted, found.token_ids, found.failed)
        return found

    @property
    def max_logits(self) -> int:
        """Rows whose logits are computed at once."""
        return max(1, MAX_LOGITS_BYTES // (4 * self._vocab_size))

    def run(self, step: StepRows, rows: Ints) -> NDArray[np.float32]:
        """Compute the step and the logits of `rows`: [len(rows), vocab], until the next run."""
        out = self._room(len(rows))
        _call(partial(self._program_for(step, has_head=True).run, self.team), step, rows, out)
        return out

    def _room(self, num_rows: int) -> NDArray[np.float32]:
        if len(self._kept) < num_rows:
            room = np.empty((num_rows, self._vocab_size), np.float32)
            if room.nbytes > KEPT_LOGITS_BYTES:
                return room
            self._kept = room
        return self._kept[:num_rows]

    def hidden(self, step: StepRows, wanted: Ints) -> Tensor:
        program = self._program_for(step, has_head=False)
        out = np.empty((len(wanted), self._hidden_size), np.float32)
        _call(partial(program.run, self.team), step, wanted, out)
        return torch.from_numpy(out)

    def remember(self, rows: Ints, token_ids: Tensor) -> None:
        """Never called: the native sampler's tokens are on the host."""

    def close(self) -> None:
        """Programs end with this."""

    def _program_for(self, step: StepRows, *, has_head: bool) -> _native.Program:
        adapted = step.adapters is not None
        if has_head and not adapted:
            return self._program
        found = self._others.get((has_head, adapted))
        if found is None:
            found = self._others[has_head, adapted] = self._record(has_head, adapted)
        return found

    def _record(self, has_head: bool, adapted: bool) -> _native.Program:
        model, kv = self._model, self._kv

        def forward(token_ids: Tensor, inputs: AttentionInputs) -> Tensor:
            hidden = model.forward(token_ids, inputs, kv)
            return model.logits(hidden) if has_head else hidden

        # Which rows have which adapter is told with each step.
        with model.adapted([(0, torch.zeros(0))]) if adapted else nullcontext():
            program = self._ops.record(forward, self._max_rows)
        # Learning writes to blocks that somebody may hold by now.
        num_blocks = -(-SAMPLE_TOKENS // kv[0].k.shape[1])
        parts = (part for layer in kv for part in (layer.k, layer.v, layer.k_scale, layer.v_scale))
        written = [part[:num_blocks] for part in parts if part is not None]
        held = [part.clone() for part in written]
        self._learn_outliers(program, self._vocab_size if has_head else self._hidden_size)
        for part, before in zip(written, held, strict=True):
            part.copy_(before)
        return program


def _call(
    function: Callable[..., None], step: StepRows, rows: Ints, *results: NDArray[Any]
) -> None:
    """Run a step; what it finds of `rows` is written to `results`."""
    function(
        step.token_ids,
        step.positions,
        step.slot_mapping,
        step.block_tables,
        step.query_start,
        step.seq_lens,
        rows,
        *results,
        *(() if step.adapters is None else (step.adapters,)),
    )


class NativeForward:
    """Logits of as many wanted rows as are held at once. Implements `Forward`.

    A program computes logits together with all that leads to them. Where more are wanted than are
    held (prompt logprobs of long prompts), the step is computed again for the next ones, which
    writes the same keys and values once more.
    """

    def __init__(self, executor: NativeExecutor, step: StepRows, wanted: Ints) -> None:
        self._executor = executor
        self._step = step
        self._wanted = wanted
        self._compute(0)

    def logits(self, begin: int, end: int) -> NDArray[np.float32]:
        if not self._first <= begin <= end <= self._first + len(self._held):
            self._compute(begin)
        return self._held[begin - self._first : end - self._first]

    def _compute(self, first: int) -> None:
        self._first = first
        rows = self._wanted[first : first + self._executor.max_logits]
        self._held = self._executor.run(self._step, rows)
