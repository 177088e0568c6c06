"""Paged attention against plain softmax in float64, and its bits against each other."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, KVLayer
from pellucid.kernels.reference import ReferenceOps
from pellucid.kernels.reference_attention import decode_height
from tests.kernels.paged import Pool, random_rows

OPS = ReferenceOps()

# (sequence, first position, tokens): decodes and chunks on both sides of the edges at 32 and 256
STEPS: dict[str, list[tuple[int, int, int]]] = {
    "one token": [(0, 0, 1)],
    "decode": [(0, 254, 1), (1, 255, 1), (2, 256, 1), (3, 3, 1)],
    "chunks": [(0, 0, 33), (1, 250, 41), (2, 511, 9)],
    "mixed": [(0, 0, 7), (1, 600, 1), (2, 100, 65), (3, 511, 1), (4, 30, 8)],
}


@dataclass
class Case:
    """Sequences with all their q, k, v, the k and v of which are in the pool up to each end."""

    heads: int
    kv_heads: int
    head_dim: int
    block_size: int = 16

    def step(self, chunks: list[tuple[int, int, int]]) -> tuple[Tensor, KVLayer, AttentionInputs]:
        pool = Pool(self.block_size, num_blocks=1 + sum(1 + 700 // self.block_size for _ in chunks))
        kv = pool.poisoned(self.kv_heads, self.head_dim)
        for sequence, start, count in chunks:
            pool.add_sequence(start + count)
            _, k, v = self.qkv(sequence, start + count)
            OPS.write_kv(k, v, pool.inputs([(sequence, 0, start + count)]), kv)
        queries = [self.qkv(s, start + count)[0][start:] for s, start, count in chunks]
        return torch.cat(queries), kv, pool.inputs(chunks)

    def qkv(self, sequence: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        sizes = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = (
            random_rows(700, heads, self.head_dim, seed=10 * sequence + part)[:length]
            for part, heads in enumerate(sizes)
        )
        return q, k, v

    def expected(
        self,
        chunks: list[tuple[int, int, int]],
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        outputs = []
        for sequence, start, count in chunks:
            q, k, v = (t.double().transpose(0, 1) for t in self.qkv(sequence, start + count))
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=0) for t in (k, v))
            positions = torch.arange(start + count)
            distance = positions[start:, None] - positions
            seen = distance >= 0
            if window is not None:
                seen &= distance < window
            if softcap is None:
                out = F.scaled_dot_product_attention(q[:, start:], k, v, seen, scale=scale)
            else:
                scores = torch.tanh(q[:, start:] @ k.transpose(1, 2) * scale / softcap) * softcap
                out = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
            outputs.append(out.transpose(0, 1))
        return torch.cat(outputs)


def attend(
    q: Tensor,
    kv: KVLayer,
    inputs: AttentionInputs,
    scale: float = 0.2,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    inputs.plan = OPS.plan_attention(inputs, kv, q.shape[1], [None, window])
    return OPS.paged_attention(q, kv, inputs, scale, window, softcap)


@pytest.mark.parametrize("chunks", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (1, None), (40, 3.0), (300, None)])
@pytest.mark.parametrize(
    "case",
    [Case(1, 1, 8), Case(9, 3, 64), Case(7, 1, 33, block_size=3), Case(4, 4, 80, block_size=1)],
    ids=str,
)
def test_is_softmax_over_what_a_query_sees(
    case: Case, window: int | None, softcap: float | None, chunks: list[tuple[int, int, int]]
) -> None:
    """Slots that no token owns hold NaN, which must not show."""
    chunks = [(place, start, count) for place, (_, start, count) in enumerate(chunks)]
    scale = case.head_dim**-0.5
    actual = attend(*case.step(chunks), scale, window, softcap)
    expected = case.expected(chunks, scale, window, softcap)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    case, chunks = Case(4, 2, 16), STEPS["chunks"]
    q, kv, inputs = case.step(chunks)
    actual = attend(q.to(dtype), KVLayer(kv.k.to(dtype), kv.v.to(dtype)), inputs)
    assert actual.dtype == dtype
    expected = case.expected(chunks, 0.2, None, None)
    torch.testing.assert_close(actual.double(), expected, rtol=2e-2, atol=2e-2)


def test_empty_step() -> None:
    pool = Pool(block_size=16, num_blocks=4)
    out = attend(torch.empty(0, 4, 16), pool.poisoned(2, 16), pool.inputs([]))
    assert out.shape == (0, 4, 16)


def test_slots_before_the_window_are_not_read() -> None:
    """A cache may drop blocks that have left the window, and give them to others."""
    case, chunks, window = Case(4, 2, 16), [(0, 400, 20)], 30
    q, kv, inputs = case.step(chunks)
    expected = attend(q, kv, inputs, window=window)
    for pool in (kv.k, kv.v):
        for block in inputs.block_tables[0, : (400 - window) // 16].tolist():
            pool[block] = float("nan")
    inputs.block_tables[0, : (400 - window) // 16] = 0
    assert torch.equal(attend(q, kv, inputs, window=window), expected)


def test_huge_scores_do_not_overflow() -> None:
    case, chunks = Case(2, 1, 8), STEPS["chunks"]
    q, kv, inputs = case.step(chunks)
    actual = attend(q, kv, inputs, scale=1e4)
    assert torch.isfinite(actual).all()


def test_needs_its_plan() -> None:
    q, kv, inputs = Case(2, 1, 8).step(STEPS["one token"])
    with pytest.raises(ValueError, match="plan_attention"):
        OPS.paged_attention(q, kv, inputs, 1.0)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (20, None), (300, 5.0)])
@pytest.mark.parametrize("shape", [(9, 3, 64), (1, 1, 16), (7, 1, 128), (16, 1, 32)], ids=str)
def test_bits_do_not_depend_on_cuts_or_company(
    shape: tuple[int, int, int], window: int | None, softcap: float | None, threads: int
) -> None:
    """One sequence of 600 tokens: at once, in chunks, token by token among others."""
    case, length = Case(*shape), 600
    q = case.qkv(0, length)[0]
    options = (0.125, window, softcap)
    whole = attend(*case.step([(0, 0, length)]), *options)

    pool = Pool(16, num_blocks=200)
    kv = pool.poisoned(case.kv_heads, case.head_dim)
    for sequence, size in ((0, length), (1, 700), (2, 300)):
        pool.add_sequence(size)
        rows = case.qkv(sequence, size)
        OPS.write_kv(rows[1], rows[2], pool.inputs([(sequence, 0, size)]), kv)
    company = [(1, 650, 1), (2, 200, 50)]
    company_q = torch.cat([case.qkv(s, start + n)[0][start:] for s, start, n in company])
    start = 0
    for count in [1, 1, 7, 7, 31, 40, 200, 1, 9, 8, 33, 1, 1, 150, 1, 109]:
        inputs = pool.inputs([*company, (0, start, count)])
        step_q = torch.cat((company_q, q[start : start + count]))
        out = attend(step_q, kv, inputs, *options)
        assert torch.equal(out[len(company_q) :], whole[start : start + count]), (start, count)
        start += count
    assert start == length


def test_decoding_tiles_fall_back_to_the_long_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a library's small product disagrees with its large one, decoding uses the large one."""
    monkeypatch.setattr(torch, "equal", lambda a, b: False)
    assert decode_height.__wrapped__(3, 64) == 32
    monkeypatch.undo()
    case, chunks = Case(9, 3, 64), STEPS["mixed"]
    expected = attend(*case.step(chunks))
    monkeypatch.setattr("pellucid.kernels.reference_attention.decode_height", lambda *shape: 32)
    assert torch.equal(attend(*case.step(chunks)), expected)
