"""Logprobs against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("vocab", [40, 5000])
@pytest.mark.parametrize("num_top", [0, 1, 20, 10**6])
def test_values_ranks_and_alternatives(vocab, num_top, sampler):
    logits = torch.randn(7, vocab, generator=torch.Generator().manual_seed(1)) * 5
    logits[3, 1:4] = logits[3].max()  # equals at the top
    chosen = np.array([0, 1, 2, 3, 4, 5, vocab - 1])
    found = sampler.logprobs(logits, chosen, num_top)
    raw = logits.double().numpy()
    expected = raw - np.log(np.exp(raw).sum(-1, keepdims=True))
    for row in range(7):
        order = np.lexsort((np.arange(vocab), -raw[row]))[:num_top]
        assert found.top_ids[row].tolist() == order.tolist()
        np.testing.assert_allclose(found.top[row], expected[row, order], rtol=1e-5, atol=1e-5)
        assert found.rank[row] == 1 + (raw[row] > raw[row, chosen[row]]).sum()
    picked = expected[np.arange(7), chosen]
    np.testing.assert_allclose(found.chosen, picked, rtol=1e-5, atol=1e-5)


def test_a_row_alone_gets_the_bits_it_gets_in_a_batch(sampler):
    logits = torch.randn(20, 5000, generator=torch.Generator().manual_seed(2)) * 5
    chosen = np.arange(20) * 7
    together = sampler.logprobs(logits, chosen, 20)
    for row in range(20):
        alone = sampler.logprobs(logits[row : row + 1], chosen[row : row + 1], 3)
        assert alone.chosen[0] == together.chosen[row]
        assert alone.top[0].tolist() == together.top[row, :3].tolist()
        assert alone.top_ids[0].tolist() == together.top_ids[row, :3].tolist()
