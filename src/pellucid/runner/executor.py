"""How a step's forward pass is run: op by op by torch, or as one recorded program.

The runner says which rows of the step it wants logits of; how and when they are computed is the
executor's affair. What is recorded of CUDA is in `graphs`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.errors import ModelError
from pellucid.kernels.interface import AttentionInputs, KVLayer
from pellucid.kernels.lora import NO_ADAPTER
from pellucid.kernels.native import NativeOps, thread_team
from pellucid.models.base import Model
from pellucid.runner import device as device_api
from pellucid.runner.batch import Ints, StepRows
from pellucid.runner.staging import Staging
from pellucid.sample.backends import NativeSampler, Sampler, TorchSampler, gpu_sampler

if TYPE_CHECKING:
    from pellucid import _native
    from pellucid.runner.graphs import Recorder

# Logits held at once: those of a whole prompt over a large vocabulary would take gigabytes.
MAX_LOGITS_BYTES = 256 << 20
# Memory for logits that is kept from step to step: to give megabytes back to the system and take
# them anew costs a step of many sequences a good part of a millisecond.
KEPT_LOGITS_BYTES = 64 << 20
# What outliers are learned from: tokens spread over the vocabulary.
SAMPLE_TOKENS = 64
SAMPLE_STRIDE = 7919


class Forward(Protocol):
    """A step under way."""

    def logits(self, begin: int, end: int) -> Any:
        """Float32 [end - begin, vocab] of the wanted rows begin .. end - 1.

        A tensor or an array, as the executor's sampler takes it. It may be overwritten
        when more rows are asked for, and by the next step.
        """
        ...


class Executor(Protocol):
    """Runs a model over steps, and fills the KV pool that it was made with."""

    sampler: Sampler[Any]  # for its logits

    def launch(self, step: StepRows, wanted: Ints) -> Forward:
        """Start on all rows of `step`, of which `wanted` will be asked for logits."""
        ...

    def hidden(self, step: StepRows, wanted: Ints) -> Tensor:
        """Start on all rows of `step`; [n, hidden] of those `wanted`, as the head would read them.

        Keys and values come out as those of `launch` do, to the bit.
        """
        ...

    def remember(self, rows: Ints, token_ids: Tensor) -> None:
        """Tokens [n] that the sampler drew for `rows`, where it leaves them on the device.

        A later step has UNKNOWN in their place.
        """
        ...

    def close(self) -> None:
        """Let go of what was recorded. Not to be launched any more."""
        ...


def make_executor(
    model: Model,
    kv: list[KVLayer],
    device: torch.device,
    *,
    max_rows: int,
    max_num_seqs: int,
    max_model_len: int,
    threads: int,
    graphs: Recorder | None = None,
) -> Executor:
    """The executor that fits the model's ops.

    Args:
        max_rows: of the largest step.
        graphs: records steps that decode, if that is wanted. The last block of `kv` is then to be
            nobody's.

    Raises:
        ModelError: the model does something that the ops cannot.
    """
    if not isinstance(model.ops, NativeOps):
        num_blocks, block_size = kv[0].k.shape[:2]
        widest = -(-max_model_len // block_size)
        staging = Staging(device_api.Link(device), max_num_seqs, widest, num_blocks - 1)
        if graphs is None:
            return TorchExecutor(model, kv, staging)
        from pellucid.runner.graphs import GraphExecutor

        return GraphExecutor(model, kv, staging, graphs, max_num_seqs, max_model_len)
    try:
        return NativeExecutor(model, model.ops, kv, max_rows, max_model_len, threads)
    except ValueError as error:
        raise ModelError(
            f"native kernels cannot run this model ({error}); use --kernels reference"
        ) from None


class TorchExecutor:
    """Op by op, on any device. Logits are computed when they are asked for."""

    def __init__(self, model: Model, kv: list[KVLayer], staging: Staging) -> None:
        self._model = model
        self._kv = kv
        self._staging = staging
        # Triton's leaves its tokens on the device, where the next step finds them.
        self.sampler: Sampler[Any] = TorchSampler()
        if model.ops.name == "triton":
            self.sampler = gpu_sampler(staging.max_num_seqs)

    def launch(self, step: StepRows, wanted: Ints) -> Forward:
        return TorchForward(self._model, self.hidden(step, wanted))

    @torch.no_grad()
    def hidden(self, step: StepRows, wanted: Ints) -> Tensor:
        token_ids, inputs, wanted_rows = self._staging.load(step, wanted)
        if step.adapters is None:
            return self._model.forward(token_ids, inputs, self._kv)[wanted_rows]
        with self._model.adapted(self._groups(step.adapters)):
            return self._model.forward(token_ids, inputs, self._kv)[wanted_rows]

    def _groups(self, adapters: NDArray[np.int32]) -> list[tuple[int, Tensor]]:
        """Each adapter of a step and its rows, on the device."""
        numbers = [int(number) for number in np.unique(adapters) if number != NO_ADAPTER]
        rows = [np.flatnonzero(adapters == number) for number in numbers]
        return list(zip(numbers, self._staging.ring.send(rows), strict=True))

    def remember(self, rows: Ints, token_ids: Tensor) -> None:
        self._staging.remember(rows, token_ids)

    def close(self) -> None:
        """Nothing was recorded."""


class TorchForward:
    """Hidden states of the wanted rows. Implements `Forward`."""

    def __init__(self, model: Model, hidden: Tensor) -> None:
        self._model = model
        self._hidden = hidden

    @torch.no_grad()
    def logits(self, begin: int, end: int) -> Tensor:
        return self._model.logits(self._hidden[begin:end])


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
        threads: int,
    ) -> None:
        self._team = thread_team(threads)
        self.sampler: Sampler[Any] = NativeSampler(self._team)
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
        places = np.arange(length)
        step = StepRows(
            rows=np.zeros(1, np.int64),
            query_start=np.array([0, length], np.int32),
            seq_lens=np.array([length], np.int32),
            token_ids=places * SAMPLE_STRIDE % self._vocab_size,
            positions=places,
            slot_mapping=places,
            block_tables=np.arange(-(-length // block_size), dtype=np.int32)[None],
        )
        rows = places[: self.max_logits]
        _call(program.learn_outliers, step, rows, np.empty((len(rows), columns), np.float32))

    def launch(self, step: StepRows, wanted: Ints) -> NativeForward:
        return NativeForward(self, step, wanted)

    @property
    def max_logits(self) -> int:
        """Rows whose logits are computed at once."""
        return max(1, MAX_LOGITS_BYTES // (4 * self._vocab_size))

    def run(self, step: StepRows, rows: Ints) -> NDArray[np.float32]:
        """Compute the step and the logits of `rows`: [len(rows), vocab], until the next run."""
        program = self._program_for(step, has_head=True)
        return _call(partial(program.run, self._team), step, rows, self._room(len(rows)))

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
        return torch.from_numpy(_call(partial(program.run, self._team), step, wanted, out))

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
    function: Callable[..., None], step: StepRows, rows: Ints, out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Run a step; what the program ends with of `rows` is written to `out`, which is returned."""
    function(
        step.token_ids,
        step.positions,
        step.slot_mapping,
        step.block_tables,
        step.query_start,
        step.seq_lens,
        rows,
        out,
        *(() if step.adapters is None else (step.adapters,)),
    )
    return out


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
