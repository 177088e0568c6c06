from __future__ import annotations

import numpy as np
import pytest
import torch

from pellucid.quant.rounding import can_round, join, round_matrix, round_rows, round_tensor
from tests.device import DEVICE


@pytest.mark.parametrize(("bits", "steps"), [(8, 127 * 2), (4, 15)])
def test_no_value_moves_by_more_than_half_a_step(bits: int, steps: int) -> None:
    w = np.random.default_rng(0).normal(size=(7, 96)).astype(np.float32)
    found = round_rows(w, bits)
    groups = w.reshape(7, 3, 32)
    low = np.minimum(groups.min(-1), 0) if bits == 8 else groups.min(-1)
    span = 2 * np.abs(groups).max(-1) if bits == 8 else groups.max(-1) - low
    # fp16 scales and minima add a part in a thousand of the largest value.
    allowed = span / steps / 2 + np.abs(groups).max(-1) * 2e-3
    error = np.abs(found.dense().reshape(groups.shape) - groups).max(-1)
    assert (error <= allowed).all()
    assert found.q.max() < 1 << bits
    assert np.array_equal(found.scales, found.scales.astype(np.float16))


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_and_tiny_numbers_stay_finite(bits: int) -> None:
    w = np.zeros((2, 64), np.float32)
    w[1] = 1e-12
    assert np.abs(round_rows(w, bits).dense()).max() < 1e-7


@pytest.mark.parametrize("bits", [4, 8])
def test_chunks_give_what_the_whole_gives(bits: int) -> None:
    w = np.random.default_rng(1).normal(size=(3000, 1024)).astype(np.float32)
    chunks = list(round_matrix(lambda rows: w[rows], (3000, 1024), bits))
    assert len(chunks) > 1
    assert np.array_equal(join(chunks), round_rows(w, bits).dense())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 1e4])
def test_a_device_rounds_to_the_same_numbers(bits: int, size: float) -> None:
    """On a GPU if the tests run there."""
    w = np.random.default_rng(2).normal(size=(300, 256)).astype(np.float32) * np.float32(size)
    found, expected = round_tensor(torch.from_numpy(w).to(DEVICE), bits), round_rows(w, bits)
    for field in ("q", "scales", "minima"):
        a, b = getattr(found, field), getattr(expected, field)
        assert (a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b)), field
    assert (found.bits, found.zero, found.group) == (expected.bits, expected.zero, expected.group)


def test_only_matrices_of_whole_groups_can_be_rounded() -> None:
    assert can_round((5, 64))
    assert not can_round((5, 48))
    assert not can_round((64,))
