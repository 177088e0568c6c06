"""Products with float weights against torch, and their bits against each other."""

from __future__ import annotations

import pytest
import torch

from pellucid.kernels.reference import ReferenceOps
from pellucid.kernels.triton.thresholds import Thresholds
from tests.kernels.test_reference_ops import random


@pytest.fixture
def dense_ops(ops: ReferenceOps) -> ReferenceOps:
    """Triton's ops, for float weights, too."""
    return type(ops)(Thresholds(dense=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "n", "k"), [(0, 5, 64), (1, 130, 65), (3, 40, 1600), (65, 40, 1100), (130, 7, 40)]
)
def test_equals_the_product_in_float64(
    dense_ops: ReferenceOps, rows: int, n: int, k: int, dtype: torch.dtype
) -> None:
    """One part and several, split among programs and not, with edges everywhere."""
    x, w = random(rows, k, dtype=dtype), random(n, k, seed=1, dtype=dtype)
    bias = random(n, seed=2, dtype=dtype)
    product = x.double() @ w.double().T
    near = {"rtol": 1e-5, "atol": 2e-4} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 0.1}
    found = dense_ops.linear(x, w, bias)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), product + bias.double(), **near)
    torch.testing.assert_close(dense_ops.linear(x, w).double(), product, **near)
    logits = dense_ops.logits(x, w)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), product, rtol=1e-5, atol=2e-4)


def test_a_row_does_not_depend_on_its_company(dense_ops: ReferenceOps) -> None:
    """Places are kept, as numpy's products may depend on them; parts are split, or are not."""
    x, w = random(130, 1600, seed=2), random(40, 1600, seed=1)
    together = dense_ops.linear(x, w)
    for start, count in ((0, 1), (64, 5), (0, 64), (128, 2), (0, 66)):
        rows = slice(start, start + count)
        assert torch.equal(dense_ops.linear(x[rows], w), together[rows])


def test_taller_tiles_compute_the_same(ops: ReferenceOps) -> None:
    x, w = random(130, 600, seed=2), random(40, 600, seed=1)
    tall = type(ops)(Thresholds(dense=1, dense_rows=128))
    expected = type(ops)(Thresholds(dense=1)).linear(x, w)
    torch.testing.assert_close(tall.linear(x, w), expected, rtol=1e-5, atol=1e-4)


def test_float_weights_are_left_to_torch_unless_asked_for(
    ops: ReferenceOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    unasked = type(ops)(Thresholds())
    monkeypatch.setattr(unasked, "_product", None)
    x, w = random(3, 64), random(5, 64)
    assert torch.equal(unasked.linear(x, w), ReferenceOps().linear(x, w))
