"""What is asked of the device with a step's tokens, before the next step is launched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.runner.base import NewRow
from pellucid.runner.batch import Batch
from pellucid.runner.sampling import RowSampling
from pellucid.sample.backends import TorchSampler
from pellucid.sample.sampler import greedy
from pellucid.sampling_params import SamplingParams

VOCAB = 300


class OnDevice(TorchSampler):
    """Leaves its tokens on the device, as those of GPUs do, and may not be waited for."""

    def sample(self, logits: Tensor, columns: Any, rows: Any) -> tuple[Tensor, Tensor]:
        return greedy(logits)

    def logprobs(self, logits: Any, token_ids: Any, num_top: int) -> Any:
        raise AssertionError("this would wait for whatever was launched meanwhile")


@pytest.mark.parametrize("wanted", [[2, 0, 5], [None, 3, None], [None, None, -1]], ids=str)
@pytest.mark.parametrize("bias", [{}, {7: 100.0}], ids=["", "biased"])
def test_logprobs_come_with_the_tokens(wanted: list[int | None], bias: dict[int, float]) -> None:
    batch, sampling = Batch(4, 16, 4), RowSampling(OnDevice(), 4, [], VOCAB)
    for i, count in enumerate(wanted):
        new = NewRow(
            f"r{i}", [1], 1, SamplingParams(temperature=0, logprobs=count, logit_bias=bias)
        )
        sampling.add(batch.add(new), new)
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1))
    expected = logits.double().log_softmax(-1)
    tokens = [7] * 3 if bias else logits.argmax(-1).tolist()
    drawn = sampling.draw(logits, np.arange(3), batch)
    assert drawn.on_device is not None
    logits.fill_(torch.nan)  # by the next step
    choice = sampling.choose(drawn)
    assert choice.token_ids.tolist() == tokens
    for row, count in enumerate(wanted):
        entry = choice.logprobs[row]
        if count is None:
            assert entry is None
            continue
        top = expected[row].topk(VOCAB if count < 0 else count)
        assert entry.token_id == tokens[row]
        assert entry.logprob == pytest.approx(float(expected[row, tokens[row]]), abs=1e-5)
        assert entry.rank == 1 + int((expected[row] > expected[row, tokens[row]]).sum())
        assert entry.top_ids == top.indices.tolist()
        assert entry.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-5)
