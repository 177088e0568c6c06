"""Triton's kernels for single rows against the reference, and their bits against each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pellucid.kernels.interface import KVLayer
from pellucid.kernels.reference import ReferenceOps
from tests.kernels.test_reference_ops import inputs_at, random, rows_in_company

REFERENCE = ReferenceOps()
# The interpreter truncates to bfloat16 where a GPU rounds to nearest: up to one step of 2^-7.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
DTYPES = list(TOLERANCE)


def assert_near(actual: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    tolerance = TOLERANCE[actual.dtype] * scale
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (3, 64), (5, 2, 33), (2, 1537)])
def test_rms_norm(ops: ReferenceOps, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = random(*shape, dtype=dtype), random(shape[-1], seed=1)
    assert_near(ops.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5), scale=2)


def test_rms_norm_of_the_heads_of_a_wider_row(ops: ReferenceOps) -> None:
    heads = random(5, 200)[:, 40:].view(5, 5, 32)
    weight = random(32, seed=1)
    assert_near(ops.rms_norm(heads, weight, 1e-5), REFERENCE.rms_norm(heads, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 8), (1, 2), (5, 33), (2, 1100)])
def test_add_rms_norm(ops: ReferenceOps, shape: tuple[int, int], dtype: torch.dtype) -> None:
    update, residual = random(*shape, dtype=dtype), random(*shape, seed=1, dtype=dtype)
    weight = random(shape[1], seed=2)
    before = update.clone(), residual.clone()
    normed, total = ops.add_rms_norm(update, residual, weight, 1e-6)
    assert_near(total, update + residual)
    assert_near(normed, REFERENCE.rms_norm(total, weight, 1e-6))
    assert torch.equal(update, before[0])
    assert torch.equal(residual, before[1])
    assert ops.add_rms_norm(update, None, weight, 1e-6)[1] is update


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(0, 33), (1, 1), (3, 33), (2, 1025)])
def test_activations(ops: ReferenceOps, rows: int, columns: int, dtype: torch.dtype) -> None:
    both = 3 * random(rows, 2 * columns + 5, dtype=dtype)[:, 2 : 2 * columns + 2]
    assert_near(ops.silu_mul(both), REFERENCE.silu_mul(both), scale=4)
    for approximate in (True, False):
        expected = REFERENCE.gelu_mul(both, approximate)
        assert_near(ops.gelu_mul(both, approximate), expected, scale=4)


def test_activations_far_out(ops: ReferenceOps) -> None:
    x = torch.tensor([[-1e4, -100.0, 100.0, 1e4]])
    both, expected = torch.cat((x, torch.ones(1, 4)), dim=1), torch.tensor([[0, 0, 100, 1e4]])
    assert torch.equal(ops.silu_mul(both).abs(), expected)
    assert torch.equal(ops.gelu_mul(both, approximate=True).abs(), expected)
    assert torch.equal(ops.gelu_mul(both, approximate=False).abs(), expected)


@pytest.mark.parametrize("name", ["rms", "silu", "gelu"])
def test_a_row_does_not_depend_on_its_company(ops: ReferenceOps, name: str) -> None:
    weight = random(97, seed=5)
    op = {
        "rms": lambda x: ops.rms_norm(x, weight, 1e-5),
        "silu": lambda x: ops.silu_mul(torch.cat((x, x), dim=1)),
        "gelu": lambda x: ops.gelu_mul(torch.cat((x, x), dim=1), approximate=True),
    }[name]
    for alone, among in rows_in_company(op, 3 * random(80, 97)):
        assert torch.equal(alone, among)


def empty_pool(kv_heads: int, head_dim: int, dtype: torch.dtype) -> KVLayer:
    shape = (3, 4, kv_heads, head_dim)
    if dtype != torch.int8:
        return KVLayer(*(torch.full(shape, 9, dtype=dtype) for _ in "kv"))
    scales = (torch.full(shape[:3], 9.0) for _ in "kv")
    return KVLayer(*(torch.full(shape, 9, dtype=dtype) for _ in "kv"), *scales)


def dense(pool: Tensor, scales: Tensor | None) -> Tensor:
    return pool.float() if scales is None else pool * scales.unsqueeze(-1)


@pytest.mark.parametrize("pool", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("head_dim", "rotated"), [(16, 16), (80, 32), (6, 2), (256, 96)])
def test_rope_and_write_kv(
    ops: ReferenceOps, head_dim: int, rotated: int, dtype: torch.dtype, pool: torch.dtype
) -> None:
    """Of projections that lie side by side; what lies in other slots stays."""
    stacked = random(5, 8 * head_dim, dtype=dtype)
    q, k, v = (
        part.unflatten(1, (-1, head_dim))
        for part in stacked.split([4 * head_dim, 2 * head_dim, 2 * head_dim], dim=1)
    )
    angles = random(50, rotated // 2, seed=3)
    cos, sin = angles.cos(), angles.sin()
    inputs = inputs_at([0, 49, 7, 7, 20], slots=[0, 5, 3, 11, 8])
    actual, expected = empty_pool(2, head_dim, pool), empty_pool(2, head_dim, pool)
    turned = ops.rope_and_write_kv(q, k, v, cos, sin, inputs, actual)
    assert_near(turned, REFERENCE.rope_and_write_kv(q, k, v, cos, sin, inputs, expected))
    # An integer may fall to the other side where the rotated key differs in its last bit.
    step = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.int8: 4e-2}[pool]
    for found, wanted in (
        (dense(actual.k, actual.k_scale), dense(expected.k, expected.k_scale)),
        (dense(actual.v, actual.v_scale), dense(expected.v, expected.v_scale)),
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=step)
    if pool == torch.int8:  # of values nothing is turned before
        assert torch.equal(actual.v, expected.v)
        assert torch.equal(actual.v_scale, expected.v_scale)

    alone = empty_pool(2, head_dim, pool)
    for row in range(5):
        one = inputs_at([inputs.positions[row]], [inputs.slot_mapping[row]])
        here = slice(row, row + 1)
        single = ops.rope_and_write_kv(q[here], k[here], v[here], cos, sin, one, alone)
        assert torch.equal(single[0], turned[row])
    assert torch.equal(dense(alone.k, alone.k_scale), dense(actual.k, actual.k_scale))
    assert torch.equal(dense(alone.v, alone.v_scale), dense(actual.v, actual.v_scale))


def test_rope_of_no_tokens(ops: ReferenceOps) -> None:
    q, k, angles = random(0, 4, 16), random(0, 2, 16), random(3, 8)
    pool = empty_pool(2, 16, torch.float32)
    turned = ops.rope_and_write_kv(q, k, k, angles, angles, inputs_at([], []), pool)
    assert turned.shape == q.shape
    assert (pool.k == 9).all()


def test_int8_heads_that_are_not_finite_have_such_scales(ops: ReferenceOps) -> None:
    heads = random(2, 1, 16)
    heads[0, 0, 3], heads[1, 0, 15] = float("nan"), float("inf")
    angles, pool = torch.zeros(4, 8), empty_pool(1, 16, torch.int8)
    inputs = inputs_at([0, 1], slots=[2, 7])
    ops.rope_and_write_kv(heads, heads, heads, angles.cos(), angles, inputs, pool)
    for scales in (pool.k_scale, pool.v_scale):
        assert not scales.flatten()[inputs.slot_mapping].isfinite().any()
