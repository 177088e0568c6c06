"""A step op by op, on any device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.kernels.interface import KVLayer
from pellucid.kernels.lora import NO_ADAPTER
from pellucid.models.base import Model
from pellucid.runner.batch import Ints, StepRows
from pellucid.runner.executor import Forward, Likeliest
from pellucid.runner.staging import Staging
from pellucid.sample.backends import Sampler, TorchSampler, gpu_sampler


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

    def likeliest(self, step: StepRows, wanted: Ints) -> Likeliest | None:
        return None

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
