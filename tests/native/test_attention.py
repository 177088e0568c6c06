"""Paged attention against softmax in float64, and against itself however the work is cut."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from pellucid.kernels.int8_heads import hadamard, round_heads, widen_heads
from pellucid.kernels.interface import KVLayer
from pellucid.kernels.native import native_layout

from .programs import Recorder, assert_close, native, run

PAIRS = native.isa() == "avx512bf16"
INT8_DOTS = native.isa().startswith("avx512")


@dataclass
class Case:
    """Sequences of random keys and values, laid out in a pool whose other slots hold NaN."""

    lengths: list[int]  # context of each sequence
    heads: int = 4
    groups: int = 2
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    softcap: float | None = None
    dtype: torch.dtype = torch.float32
    scale: float = 0.3
    pool: list[Tensor] = field(init=False)  # keys and values; of int8 their scales, too
    tables: Tensor = field(init=False)
    q: list[Tensor] = field(init=False)  # of every position of every sequence

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        blocks = [-(-length // self.block_size) for length in self.lengths]
        spare = 3
        order = torch.randperm(sum(blocks) + spare, generator=generator)
        shape = (sum(blocks) + spare, self.block_size, self.groups, self.head_dim)
        nothing = 99 if self.dtype == torch.int8 else torch.nan
        self.pool = [torch.full(shape, nothing, dtype=self.dtype) for _ in "kv"]
        if self.dtype == torch.int8:
            self.pool += [torch.full(shape[:3], torch.nan) for _ in "kv"]
        self.tables = torch.full((len(blocks), max(blocks)), 10**6, dtype=torch.int32)
        self.q, start = [], 0
        for s, (count, length) in enumerate(zip(blocks, self.lengths, strict=True)):
            self.tables[s, :count] = order[start : start + count]
            start += count
            self.q.append(torch.randn(length, self.heads * self.head_dim, generator=generator))
            for index in range(2):
                rows = torch.randn(length, self.groups, self.head_dim, generator=generator)
                if self.dtype == torch.int8:
                    rows, scales = round_heads(rows)
                    self.pool[2 + index].view(-1, self.groups)[self.slots(s)] = scales
                flat = self.pool[index].view(-1, self.groups, self.head_dim)
                flat[self.slots(s)] = rows.to(self.dtype)

    def slots(self, sequence: int) -> Tensor:
        positions = torch.arange(self.lengths[sequence])
        blocks = self.tables[sequence, positions // self.block_size].long()
        return blocks * self.block_size + positions % self.block_size

    def expected(self, sequence: int) -> Tensor:
        """Of all positions of the sequence: [length, heads * head_dim] float64."""
        length, shared = self.lengths[sequence], self.heads // self.groups
        k, v = (
            part.view(-1, self.groups, self.head_dim)[self.slots(sequence)].double()
            for part in self.pool[:2]
        )
        if self.dtype == torch.int8:
            slots = self.slots(sequence)
            k, v = (
                hadamard(part.float() * scales.view(-1, self.groups, 1)[slots]).double()
                for part, scales in zip((k, v), self.pool[2:], strict=True)
            )
        k, v = (part.repeat_interleave(shared, dim=1) for part in (k, v))
        q = self.q[sequence] * self.scale
        if self.dtype == torch.bfloat16 and PAIRS:  # weights are rounded as well
            q = q.bfloat16()
        q = q.view(length, self.heads, self.head_dim)
        if self.dtype == torch.int8 and INT8_DOTS:  # as keys
            q = widen_heads(*round_heads(q))
        q = q.double()
        scores = torch.einsum("ihd,jhd->hij", q, k)
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        distance = torch.arange(length)[:, None] - torch.arange(length)[None]
        hidden = distance < 0
        if self.window is not None:
            hidden |= distance >= self.window
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return torch.einsum("hij,jhd->ihd", weights, v).flatten(1)

    def check(self, actual: Tensor, expected: Tensor) -> None:
        """Dot products of bf16 round weights to 9 bits, those of int8 to 16 bits.

        A query that lies between two int8 may be rounded to the other one than expected.
        """
        if self.dtype == torch.int8 and INT8_DOTS:
            assert_close(actual, expected, 5e-3)
            off = (actual - expected).abs() > 1e-4 * expected.abs().max()
            assert off.double().mean() < 1e-3
        else:
            # In float32 what a score of 256 components is off by comes back in its weight.
            assert_close(actual, expected, 4e-3 if self.dtype == torch.bfloat16 and PAIRS else 8e-6)

    def attend(self, chunks: list[tuple[int, int, int]], threads: int = 2) -> list[Tensor]:
        """Chunks (sequence, first position, end) attend in one step; each chunk's result."""
        recorder = Recorder()
        rows = torch.cat([self.q[s][begin:end] for s, begin, end in chunks])
        width = self.heads * self.head_dim
        layer = native_layout(KVLayer(*self.pool))
        pool = native.KVPool(layer.k, layer.v, layer.k_scale, layer.v_scale)
        out = recorder.op(
            "paged_attention",
            width,
            recorder.rows(rows),
            pool,
            self.scale,
            self.window,
            self.softcap,
        )
        sizes = [end - begin for _, begin, end in chunks]
        query_start = torch.tensor([0, *sizes]).cumsum(0).int()
        result = run(
            recorder.finish(out, max_rows=len(rows)),
            range(len(rows)),
            width,
            tables=self.tables[[s for s, _, _ in chunks]].contiguous(),
            query_start=query_start,
            seq_lens=torch.tensor([end for _, _, end in chunks], dtype=torch.int32),
            threads=threads,
        )
        return list(result.split(sizes))


CASES = {
    "one token": Case([1]),
    "odd everything": Case([37, 5, 301], heads=9, groups=3, head_dim=48, block_size=7),
    "many heads per group": Case([300], heads=14, groups=2, head_dim=128),
    "one head per group": Case([290, 2], heads=3, groups=3, head_dim=16, block_size=1),
    "more heads than rows of a tile": Case([20], heads=100, groups=1, head_dim=16),
    "wide heads": Case([270], heads=4, groups=1, head_dim=256),
    "head of 80": Case([100], heads=6, groups=2, head_dim=80),
    "window": Case([700, 90], window=100),
    "window of one": Case([260], window=1),
    "window longer than a partition": Case([900], window=300, heads=2, groups=1),
    "soft cap": Case([300], softcap=2.0, scale=1.0),
    "bf16": Case([520], dtype=torch.bfloat16, block_size=5),
    "fp16": Case([520], dtype=torch.float16, block_size=5),
    "fp16, odd": Case([37, 301], heads=9, groups=3, head_dim=48, block_size=7, dtype=torch.float16),
    "fp16, window and cap": Case([520], dtype=torch.float16, window=257, softcap=5.0),
    "int8": Case([520], dtype=torch.int8, block_size=5),
    "int8, odd": Case([37, 301], heads=9, groups=3, head_dim=48, block_size=7, dtype=torch.int8),
    "int8, wide": Case([270], heads=14, groups=2, head_dim=112, dtype=torch.int8),
    "int8, window and cap": Case([520], dtype=torch.int8, window=257, softcap=5.0),
    "int8, widest": Case([70], heads=3, groups=3, head_dim=256, dtype=torch.int8),
    "bf16, window and cap": Case([520], dtype=torch.bfloat16, window=257, softcap=5.0),
    "bf16, odd": Case(
        [37, 301], heads=9, groups=3, head_dim=48, block_size=7, dtype=torch.bfloat16
    ),
    "bf16, head of 80": Case([270], heads=14, groups=2, head_dim=80, dtype=torch.bfloat16),
    "bf16, widest": Case([70], heads=3, groups=3, head_dim=256, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", CASES)
def test_whole_sequences(name: str) -> None:
    case = CASES[name]
    chunks = [(s, 0, length) for s, length in enumerate(case.lengths)]
    for s, result in enumerate(case.attend(chunks)):
        case.check(result, case.expected(s))


def test_decoding_and_chunks_in_one_step() -> None:
    case = Case([600, 33, 257, 256], heads=6, groups=2)
    chunks = [(0, 599, 600), (1, 10, 33), (2, 100, 257), (3, 255, 256)]
    for result, (s, begin, end) in zip(case.attend(chunks), chunks, strict=True):
        assert_close(result, case.expected(s)[begin:end], 4e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_same_bits_however_a_prompt_is_cut(name: str, chunk: int) -> None:
    case = CASES[name]
    length = case.lengths[0]
    (whole,) = case.attend([(0, 0, length)], threads=1)
    tail = max(0, length - 3 * chunk)  # a few chunks at the end see most partitions
    begins = range(tail, length, chunk)
    parts = [case.attend([(0, begin, min(begin + chunk, length))])[0] for begin in begins]
    assert torch.equal(torch.cat(parts), whole[tail:])


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_the_same_bits_with_any_company_on_any_number_of_threads(threads: int) -> None:
    case = Case([1500, 40, 700], heads=6, groups=2)
    (alone,) = case.attend([(0, 1490, 1500)], threads=1)
    together = case.attend([(1, 0, 40), (0, 1490, 1500), (2, 699, 700)], threads=threads)
    assert torch.equal(together[1], alone)
    (split,) = case.attend([(0, 1490, 1500)], threads=threads)
    assert torch.equal(split, alone)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_sequences_decode_as_each_alone(threads: int) -> None:
    """So many that a task has several of them, of lengths on both sides of partitions."""
    case = Case([1 + 13 * s for s in range(60)], heads=6, groups=2, dtype=torch.float16)
    chunks = [(s, length - 1, length) for s, length in enumerate(case.lengths)]
    together = case.attend(chunks, threads=threads)
    for result, chunk in zip(together, chunks, strict=True):
        assert torch.equal(result, case.attend([chunk], threads=1)[0])
        assert_close(result, case.expected(chunk[0])[-1:], 4e-6)


def test_steps_that_cannot_be() -> None:
    case = Case([40])
    recorder = Recorder()
    out = recorder.op(
        "paged_attention", 256, recorder.rows(case.q[0]), native.KVPool(*case.pool), 1.0
    )
    program = recorder.finish(out)

    def attempt(blocks: list[int], query_start: list[int], length: int, rows: int = 40) -> None:
        run(
            program,
            range(rows),
            256,
            tables=torch.tensor([blocks], dtype=torch.int32),
            query_start=torch.tensor(query_start, dtype=torch.int32),
            seq_lens=torch.tensor([length], dtype=torch.int32),
        )

    with pytest.raises(ValueError, match=r"block 1 of sequence 0 is 6, the pool has 6"):
        attempt([0, 6, 1], [0, 40], 40)
    with pytest.raises(ValueError, match="block 2 of sequence 0 is -1"):
        attempt([0, 1, -1], [0, 40], 40)
    with pytest.raises(ValueError, match="longer than its block table"):
        attempt([0, 1, 2], [0, 40], 49)
    with pytest.raises(ValueError, match="shorter than its queries"):
        attempt([0, 1, 2], [0, 40], 39)
    with pytest.raises(ValueError, match="query_start"):
        attempt([0, 1, 2], [0, 39], 40)
    with pytest.raises(ValueError, match="query_start"):
        attempt([0, 1, 2], [1, 40], 40)
    with pytest.raises(ValueError, match="token_ids"):
        attempt([0, 1, 2], [0, 41], 41, rows=41)


def test_pools_that_cannot_be() -> None:
    good = torch.zeros(4, 4, 2, 64)
    with pytest.raises(ValueError, match="shape"):
        native.KVPool(good, torch.zeros(4, 4, 2, 32))
    with pytest.raises(ValueError, match="dtype"):
        native.KVPool(good, good.bfloat16())
    with pytest.raises(ValueError, match="neither"):
        native.KVPool(good.double(), good.double())
    scales, whole = torch.zeros(4, 4, 2), good.to(torch.int8)
    with pytest.raises(ValueError, match="an int8 pool has scales"):
        native.KVPool(whole, whole, scales)
    with pytest.raises(ValueError, match="an int8 pool has scales"):
        native.KVPool(good, good, scales, scales)
    with pytest.raises(ValueError, match="scales are not"):
        native.KVPool(whole, whole, scales[:3], scales)
    recorder = Recorder()
    rows = recorder.rows(torch.zeros(1, 2 * 40))
    pool = native.KVPool(torch.zeros(4, 4, 2, 40), torch.zeros(4, 4, 2, 40))
    with pytest.raises(ValueError, match="multiple of 16"):
        recorder.op("paged_attention", 80, rows, pool, 1.0)
