"""Both backends of the sampler: tests that take `make_sampler` or `sampler` run on each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pellucid.kernels import native
from pellucid.sample.backends import NativeSampler, Sampler, TorchSampler
from pellucid.sample.sampler import SamplingColumns

Sample = Callable[[torch.Tensor, SamplingColumns], tuple[np.ndarray, np.ndarray]]


class OnTensors:
    """A native sampler that takes the CPU tensors which the tests are written in."""

    def __init__(self, sampler: NativeSampler) -> None:
        self._sampler = sampler

    def __getattr__(self, name: str) -> Callable[..., object]:
        return lambda logits, *rest: getattr(self._sampler, name)(logits.numpy(), *rest)


@pytest.fixture(params=["torch", "native"])
def make_sampler(request: pytest.FixtureRequest) -> Callable[[int], Sampler[torch.Tensor]]:
    """From a number of threads to a sampler; torch has its threads set elsewhere."""
    if request.param == "torch":
        return lambda threads: TorchSampler()
    if (obstacle := native.obstacle(torch.device("cpu"))) is not None:
        pytest.skip(obstacle)
    return lambda threads: OnTensors(NativeSampler(native.thread_team(threads)))


@pytest.fixture
def sampler(make_sampler: Callable[[int], Sampler[torch.Tensor]]) -> Sampler[torch.Tensor]:
    return make_sampler(2)


@pytest.fixture
def sample(sampler: Sampler[torch.Tensor]) -> Sample:
    """Row i of the logits chooses as row i of the columns says."""
    return lambda logits, columns: sampler.sample(logits, columns, np.arange(len(logits)))
