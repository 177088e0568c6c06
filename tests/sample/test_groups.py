"""Selection without a sort equals selection by sorting, ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pellucid.sample.groups import (
    GROUP,
    group_peaks,
    kth_largest,
    largest,
    likeliest,
    pad_to_groups,
    top_groups,
)

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
def test_likeliest_is_the_first_of_the_largest_or_nan(vocab):
    logits = rows_with_ties(5, vocab)
    logits[3, 2:4] = torch.nan
    logits[4] = -torch.inf
    ids, values = likeliest(logits)
    assert ids[:3].tolist() == [(row == row.max()).nonzero()[0].item() for row in logits[:3]]
    assert ids[3:].tolist() == [2, 0]
    np.testing.assert_array_equal(values, logits.numpy()[np.arange(5), ids])


@pytest.mark.parametrize("k", [1, 3, 50])
def test_top_groups_hold_whatever_reaches_the_kth_largest(k):
    logits = torch.randn(4, 49152, generator=torch.Generator().manual_seed(k)).abs()
    groups, members = top_groups(logits, k)
    expected = logits.view(4, -1, GROUP)[torch.arange(4)[:, None], groups].flatten(1)
    assert torch.equal(members, expected)
    assert (groups.diff(dim=-1) > 0).all()
    floor = logits.sort(dim=-1, descending=True).values[:, k - 1 : k]
    assert (members >= floor).sum(-1).tolist() == (logits >= floor).sum(-1).tolist()


@pytest.mark.parametrize("value", [100.0, torch.nan, -torch.inf])
def test_top_groups_give_up_where_more_groups_may_be_needed(value):
    """Equals in one group too many, a row with NaN, a row with too few logits."""
    logits = torch.randn(3, 5120)
    row = torch.full((5120,), -torch.inf) if value == -torch.inf else logits[1]
    row[[5, 700, 1500]] = value
    logits[1] = row
    assert top_groups(logits[[0, 2]], 2) is not None
    assert top_groups(logits, 2) is None
    assert top_groups(logits[[0, 2]], 11) is None  # more than a quarter of all groups


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
