"""Triton's paged attention against the reference, and its bits against each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pellucid.kernels.int8_heads import round_heads
from pellucid.kernels.interface import AttentionInputs, KVLayer
from pellucid.kernels.reference import ReferenceOps
from tests.kernels.paged import Pool
from tests.kernels.test_reference_attention import Case

REFERENCE = ReferenceOps()
Chunks = list[tuple[int, int, int]]

# (sequence, first position, tokens), on both sides of the edges at 64 and 256
STEPS: dict[str, Chunks] = {
    "one token": [(0, 0, 1)],
    "decode": [(0, 254, 1), (1, 255, 1), (2, 600, 1), (3, 3, 1)],
    "chunks": [(0, 0, 33), (1, 250, 9)],
    "mixed": [(0, 0, 7), (1, 300, 1), (2, 100, 20), (3, 0, 0), (4, 511, 2)],
}


def attend(
    ops: ReferenceOps,
    q: Tensor,
    kv: KVLayer,
    inputs: AttentionInputs,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    inputs.plan = ops.plan_attention(inputs, kv, q.shape[1], [None, window])
    return ops.paged_attention(q, kv, inputs, 0.2, window, softcap)


@pytest.mark.parametrize("chunks", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (1, None), (40, 3.0), (300, None)])
@pytest.mark.parametrize("case", [Case(3, 1, 64), Case(7, 1, 33, block_size=3)], ids=str)
def test_equals_the_reference(
    ops: ReferenceOps, case: Case, window: int | None, softcap: float | None, chunks: Chunks
) -> None:
    """Slots that no token owns hold NaN, which must not show."""
    step = case.step(chunks)
    expected = attend(REFERENCE, *step, window, softcap)
    actual = attend(ops, *step, window, softcap)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "case",
    [Case(2, 2, 80), Case(4, 2, 96), Case(2, 1, 128), Case(2, 1, 256), Case(17, 1, 64)],
    ids=str,
)
def test_shapes_of_heads(ops: ReferenceOps, case: Case) -> None:
    step = case.step([(0, 260, 1), (1, 3, 5)])
    expected = attend(REFERENCE, *step)
    torch.testing.assert_close(attend(ops, *step), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(ops: ReferenceOps, dtype: torch.dtype) -> None:
    q, kv, inputs = Case(4, 2, 64).step(STEPS["mixed"])
    step = q.to(dtype), KVLayer(kv.k.to(dtype), kv.v.to(dtype)), inputs
    actual = attend(ops, *step)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, attend(REFERENCE, *step), rtol=3e-2, atol=3e-2)


def test_int8_pool(ops: ReferenceOps) -> None:
    q, kv, inputs = Case(4, 2, 64).step(STEPS["mixed"])
    (k, k_scale), (v, v_scale) = round_heads(kv.k), round_heads(kv.v)
    step = q, KVLayer(k, v, k_scale, v_scale), inputs
    expected = attend(REFERENCE, *step)
    torch.testing.assert_close(attend(ops, *step), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 290])
def test_a_token_does_not_depend_on_company_or_cut(ops: ReferenceOps, window: int | None) -> None:
    """Decoded, in a chunk, and in a mixed step: split into partitions or not, the same bits."""
    case = Case(3, 1, 64)
    q, kv, inputs = case.step([(0, 540, 30), (1, 0, 70)])
    together = attend(ops, q, kv, inputs, window)
    for start, count in ((0, 1), (1, 1), (3, 5), (2, 7), (29, 1), (7, 23)):
        rows = slice(start, start + count)
        here = AttentionInputs(
            positions=inputs.positions[rows],
            slot_mapping=inputs.slot_mapping[rows],
            block_tables=inputs.block_tables[:1],
            query_start=torch.tensor([0, count], dtype=torch.int32),
            seq_lens=torch.tensor([540 + start + count], dtype=torch.int32),
            query_lens_list=[count],
            seq_lens_list=[540 + start + count],
        )
        alone = attend(ops, q[rows], kv, here, window)
        assert torch.equal(alone, together[rows]), (start, count)


def test_slots_before_the_window_are_not_read(ops: ReferenceOps) -> None:
    """A cache may drop blocks that have left the window, and give them to others."""
    for tokens in (1, 20):
        q, kv, inputs = Case(4, 2, 16).step([(0, 400, tokens)])
        expected = attend(ops, q, kv, inputs, window=30)
        for pool in (kv.k, kv.v):
            for block in inputs.block_tables[0, : (400 - 30) // 16].tolist():
                pool[block] = float("nan")
        inputs.block_tables[0, : (400 - 30) // 16] = 0
        assert torch.equal(attend(ops, q, kv, inputs, window=30), expected)


def test_nothing_to_do(ops: ReferenceOps) -> None:
    pool = Pool(block_size=16, num_blocks=4)
    out = attend(ops, torch.empty(0, 2, 64), pool.poisoned(1, 64), pool.inputs([]))
    assert out.shape == (0, 2, 64)


def test_a_plan_is_needed(ops: ReferenceOps) -> None:
    q, kv, inputs = Case(2, 1, 64).step([(0, 0, 1)])
    with pytest.raises(ValueError, match="plan_attention"):
        ops.paged_attention(q, kv, inputs, 0.2)
