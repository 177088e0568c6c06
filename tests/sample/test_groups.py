"""Selection without a sort equals selection by sorting, ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pellucid.sample.groups import group_peaks, kth_largest, largest, pad_to_groups

SIZES = [5, 128, 300, 5000, 49152]


def rows_with_ties(n: int, vocab: int) -> torch.Tensor:
    """Values on a coarse grid, as bfloat16 logits are, with zeros of both signs."""
    rows = torch.randn(n, vocab, generator=torch.Generator().manual_seed(vocab))
    return torch.round(rows * 4) / 4


@pytest.mark.parametrize("vocab", SIZES)
def test_kth_largest_equals_the_sorted_row(vocab):
    logits = rows_with_ties(6, vocab)
    ordered = logits.sort(dim=-1, descending=True).values
    padded = pad_to_groups(logits)
    rows = torch.tensor([1, 2, 5])
    for k in ([1, 1, 1], [1, min(40, vocab), 3], [vocab, 1, vocab // 2]):
        found = kth_largest(padded, group_peaks(padded), rows, torch.tensor(k))
        assert found.tolist() == [ordered[r, i - 1] for r, i in zip(rows, k, strict=True)]


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("k", [0, 1, 5, 20, 64, 5000])
def test_largest_is_ordered_by_value_then_by_lower_id(vocab, k):
    logits = rows_with_ties(4, vocab)
    logits[1, vocab // 3 :] = -torch.inf
    k = min(k, vocab)
    found = largest(logits, k)
    for row, ids in zip(logits.numpy(), found.numpy(), strict=True):
        expected = np.lexsort((np.arange(vocab), -row))[:k]
        assert ids.tolist() == expected.tolist()
