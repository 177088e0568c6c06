"""How a step's forward pass is run: op by op by torch, or as one recorded program.

The runner says which rows of the step it wants logits of; how and when they are computed is the
executor's affair: `torch_executor`, `native_executor`, and `graphs` for what is recorded of CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.errors import ModelError
from pellucid.kernels.interface import KVLayer
from pellucid.kernels.native import NativeOps, thread_team
from pellucid.models.base import Model
from pellucid.runner import device as device_api
from pellucid.runner.batch import Ints, StepRows
from pellucid.runner.staging import Staging
from pellucid.sample.backends import Sampler

if TYPE_CHECKING:
    from pellucid.runner.graphs import Recorder


class Forward(Protocol):
    """A step under way."""

    def logits(self, begin: int, end: int) -> Any:
        """Float32 [end - begin, vocab] of the wanted rows begin .. end - 1.

        A tensor or an array, as the executor's sampler takes it. It may be overwritten
        when more rows are asked for, and by the next step.
        """
        ...


@dataclass(frozen=True, slots=True)
class Likeliest:
    """What `Sampler.sample` finds in greedy rows."""

    token_ids: Ints  # [n]
    failed: NDArray[np.bool_]  # [n] no logit of the row is both the largest and finite

    def __getitem__(self, rows: slice | list[int]) -> Likeliest:
        return Likeliest(self.token_ids[rows], self.failed[rows])


class Executor(Protocol):
    """Runs a model over steps, and fills the KV pool that it was made with."""

    sampler: Sampler[Any]  # for its logits

    def launch(self, step: StepRows, wanted: Ints) -> Forward:
        """Start on all rows of `step`, of which `wanted` will be asked for logits."""
        ...

    def likeliest(self, step: StepRows, wanted: Ints) -> Likeliest | None:
        """Compute `step`, and of its rows `wanted` no logits but the likeliest tokens.

        None, and nothing done, where logits are needed to find them.
        """
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
    beside: Executor | None = None,
) -> Executor:
    """The executor that fits the model's ops.

    Args:
        max_rows: of the largest step.
        graphs: records steps that decode, if that is wanted. The last block of `kv` is then to be
            nobody's.
        beside: another model's executor, never to run at the same time: threads are shared.

    Raises:
        ModelError: the model does something that the ops cannot.
    """
    if isinstance(model.ops, NativeOps):
        from pellucid.runner.native_executor import NativeExecutor

        team = beside.team if isinstance(beside, NativeExecutor) else thread_team(threads)
        try:
            return NativeExecutor(model, model.ops, kv, max_rows, max_model_len, team)
        except ValueError as error:
            raise ModelError(
                f"native kernels cannot run this model ({error}); use --kernels reference"
            ) from None
    num_blocks, block_size = kv[0].k.shape[:2]
    widest = -(-max_model_len // block_size)
    staging = Staging(device_api.Link(device), max_num_seqs, widest, num_blocks - 1)
    if graphs is None:
        from pellucid.runner.torch_executor import TorchExecutor

        return TorchExecutor(model, kv, staging)
    from pellucid.runner.graphs import GraphExecutor

    return GraphExecutor(model, kv, staging, graphs, max_num_seqs, max_model_len)
