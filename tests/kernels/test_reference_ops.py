"""The reference's ops against formulas in float64, and their bits against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from pellucid.kernels import reference
from pellucid.kernels.interface import AttentionInputs, KVLayer
from pellucid.kernels.reference import ReferenceOps

OPS = ReferenceOps()
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
DTYPES = list(TOLERANCE)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator, device="cpu")
    return noise.to(torch.get_default_device(), dtype)


def assert_near(actual: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    tolerance = TOLERANCE[actual.dtype] * scale
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 33, 150])
@pytest.mark.parametrize(("out", "inner"), [(1, 1), (48, 64), (100, 33)])
def test_linear(rows: int, out: int, inner: int, dtype: torch.dtype) -> None:
    x = random(rows, inner, seed=1, dtype=dtype)
    weight, bias = random(out, inner, seed=2, dtype=dtype), random(out, seed=3, dtype=dtype)
    product = x.double() @ weight.double().T
    assert_near(OPS.linear(x, weight), product, scale=8)
    assert_near(OPS.linear(x, weight, bias), product + bias.double(), scale=8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("out", "inner"), [(576, 576), (64, 1536), (100, 33)])
def test_linear_rows_do_not_depend_on_their_company(
    out: int, inner: int, dtype: torch.dtype, threads: int
) -> None:
    weight, bias = random(out, inner, dtype=dtype), random(out, seed=1, dtype=dtype)
    x = random(300, inner, seed=2, dtype=dtype)
    together = OPS.linear(x, weight, bias)
    for start, count in [(0, 1), (7, 1), (299, 1), (3, 2), (5, 15), (11, 16), (1, 40), (8, 292)]:
        rows = slice(start, start + count)
        assert torch.equal(OPS.linear(x[rows], weight, bias), together[rows]), (start, count)


def rows_in_company(op: Callable[[Tensor], Tensor], x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(what `op` makes of some rows alone, what it makes of them among all rows)."""
    together = op(x)
    for start, count in [(0, 1), (1, 1), (57, 3), (len(x) - 1, 1), (13, 64)]:
        yield op(x[start : start + count].contiguous()), together[start : start + count]


# An odd length: `F.silu`, for one, fails this.
@pytest.mark.parametrize("length", [576, 1537])
@pytest.mark.parametrize("name", ["rms", "layer", "silu", "gelu", "gelu tanh", "softcap"])
def test_other_ops_do_not_depend_on_company_either(name: str, length: int, threads: int) -> None:
    weight, bias = random(length, seed=5), random(length, seed=6)
    op: Callable[[Tensor], Tensor] = {
        "rms": lambda x: OPS.rms_norm(x, weight, 1e-5),
        "layer": lambda x: OPS.layer_norm(x, weight, bias, 1e-5),
        "silu": lambda x: OPS.silu_mul(torch.cat((x, x), dim=1)),
        "gelu": lambda x: OPS.gelu(x, approximate=False),
        "gelu tanh": lambda x: OPS.gelu(x, approximate=True),
        "softcap": lambda x: OPS.softcap(x, 2.0),
    }[name]
    for alone, among in rows_in_company(op, 3 * random(201, length)):
        assert torch.equal(alone, among)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (3, 64), (5, 2, 33)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = random(*shape, dtype=dtype), random(shape[-1], seed=1)
    wide = x.double()
    expected = wide / torch.sqrt((wide**2).mean(-1, keepdim=True) + 1e-5) * weight.double()
    before = x.clone()
    assert_near(OPS.rms_norm(x, weight, 1e-5), expected)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_norms_leave_their_inputs_alone(dtype: torch.dtype) -> None:
    update, residual = random(5, 32, dtype=dtype), random(5, 32, seed=1, dtype=dtype)
    weight, bias = random(32, seed=2), random(32, seed=3)
    before = update.clone(), residual.clone()
    normed, total = OPS.add_rms_norm(update, residual, weight, 1e-6)
    assert torch.equal(total, before[0] + before[1])
    assert torch.equal(normed, OPS.rms_norm(total, weight, 1e-6))
    normed, total = OPS.add_layer_norm(update, residual, weight, bias, 1e-6)
    assert torch.equal(total, before[0] + before[1])
    assert torch.equal(normed, OPS.layer_norm(total, weight, bias, 1e-6))
    assert torch.equal(update, before[0])
    assert torch.equal(residual, before[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 8), (1, 2), (5, 33)])
def test_layer_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias = random(*shape, dtype=dtype), random(shape[-1], seed=1), random(shape[-1])
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    deviation = torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
    assert_near(OPS.layer_norm(x, weight, bias, 1e-5), centred / deviation * weight + bias, scale=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_activations(rows: int, dtype: torch.dtype) -> None:
    gate, up = 4 * random(rows, 33, dtype=dtype), random(rows, 33, seed=1, dtype=dtype)
    both, wide = torch.cat((gate, up), dim=1), gate.double()
    assert_near(OPS.silu_mul(both), F.silu(wide) * up.double(), scale=4)
    for approximate, formula in ((True, "tanh"), (False, "none")):
        expected = F.gelu(wide, approximate=formula)
        assert_near(OPS.gelu_mul(both, approximate), expected * up.double(), scale=4)
        assert_near(OPS.gelu(gate, approximate), expected, scale=4)


def test_activations_far_out() -> None:
    x = torch.tensor([[-1e4, -100.0, 100.0, 1e4]])
    expected = torch.tensor([[0.0, 0.0, 100.0, 1e4]])
    assert torch.equal(OPS.silu_mul(torch.cat((x, torch.ones(1, 4)), dim=1)).abs(), expected)
    assert torch.equal(OPS.gelu(x, approximate=True).abs(), expected)
    assert torch.equal(OPS.gelu(x, approximate=False).abs(), expected)


def test_softcap() -> None:
    x = 100 * random(3, 7)
    assert_near(OPS.softcap(x, 30.0), 30 * torch.tanh(x.double() / 30), scale=30)


def test_embedding_scales_rows() -> None:
    table, ids = random(10, 4), torch.tensor([3, 3, 9])
    assert torch.equal(OPS.embedding(ids, table), torch.stack((table[3], table[3], table[9])))
    assert torch.equal(OPS.embedding(ids, table, 2.0), 2 * table[ids])
    assert OPS.embedding(ids[:0], table).shape == (0, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "rotated"), [(16, 16), (80, 32), (6, 2)])
def test_rope_rotates_like_transformers(head_dim: int, rotated: int, dtype: torch.dtype) -> None:
    tokens, max_position = 5, 50
    q = random(tokens, 4, head_dim, dtype=dtype)
    k, v = (random(tokens, 2, head_dim, seed=seed, dtype=dtype) for seed in (1, 2))
    angles = random(max_position, rotated // 2, seed=3)
    cos, sin = angles.cos(), angles.sin()
    inputs = inputs_at([0, 49, 7, 7, 20], slots=[0, 5, 3, 11, 8])
    kv = KVLayer(torch.full((3, 4, 2, head_dim), 9.0), torch.full((3, 4, 2, head_dim), 9.0))

    turned = OPS.rope_and_write_kv(q, k, v, cos, sin, inputs, kv)

    wide_cos, wide_sin = (
        torch.cat((table, table), dim=1)[inputs.positions].double() for table in (cos, sin)
    )
    expected_q, expected_k = apply_rotary_pos_emb(
        q[..., :rotated].double(), k[..., :rotated].double(), wide_cos, wide_sin, unsqueeze_dim=1
    )
    assert_near(turned, torch.cat((expected_q, q[..., rotated:].double()), dim=-1), scale=4)
    stored = kv.k.view(12, 2, head_dim)[inputs.slot_mapping].to(dtype)
    assert_near(stored, torch.cat((expected_k, k[..., rotated:].double()), dim=-1), scale=4)
    assert torch.equal(kv.v.view(12, 2, head_dim)[inputs.slot_mapping].to(dtype), v)


def test_write_kv_touches_its_slots_only() -> None:
    kv = KVLayer(torch.full((3, 4, 2, 8), 9.0), torch.full((3, 4, 2, 8), 9.0))
    k, v = random(2, 2, 8), random(2, 2, 8, seed=1)
    OPS.write_kv(k, v, inputs_at([0, 1], slots=[7, 2]), kv)
    for pool, rows in ((kv.k, k), (kv.v, v)):
        expected = torch.full((12, 2, 8), 9.0)
        expected[7], expected[2] = rows[0], rows[1]
        assert torch.equal(pool.view(12, 2, 8), expected)


def inputs_at(positions: list[int], slots: list[int]) -> AttentionInputs:
    """Tokens at positions and slots, for ops that look at nothing else."""
    nothing = torch.empty(0, dtype=torch.int32)
    return AttentionInputs(
        torch.tensor(positions), torch.tensor(slots), nothing, nothing, nothing, [], []
    )


@pytest.mark.parametrize("rows", [1, 7, 40, 200])
def test_linear_keeps_to_its_tile_where_others_round_differently(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heights = []

    def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        heights.append(len(x))
        return F.linear(x, weight, bias) + (len(x) != reference.LINEAR_TILE)

    x, weight = random(rows, 24), random(12, 24, seed=1)
    monkeypatch.setattr(reference, "_seen", {})
    monkeypatch.setattr(reference, "F", SimpleNamespace(linear=multiply, pad=F.pad))
    reference.ReferenceOps().linear(x, weight)  # tries the other sizes out
    heights.clear()
    assert_near(OPS.linear(x, weight), x.double() @ weight.double().T, scale=8)
    assert set(heights) == {reference.LINEAR_TILE}
