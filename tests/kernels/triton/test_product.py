"""Products with quantised weights against the dense matrices that they stand for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from pellucid.kernels.interface import IntegerMatrix
from pellucid.kernels.reference import ReferenceOps
from pellucid.kernels.triton.thresholds import Thresholds
from pellucid.quant.rounding import round_rows
from tests.device import DEVICE
from tests.kernels.test_reference_ops import random


@dataclass
class Held:
    """Implements `Matrix`: of integers, in two chunks, or dense."""

    matrix: IntegerMatrix
    quantised: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.q.shape

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(self.matrix.dense()).to(dtype)

    def integers(self) -> Iterator[IntegerMatrix] | None:
        return iter(halves(self.matrix)) if self.quantised else None


def halves(m: IntegerMatrix) -> list[IntegerMatrix]:
    def cut(part: slice) -> IntegerMatrix:
        arrays = (m.q, m.scales, m.minima, m.super_scales, m.super_minima)
        rows = (None if array is None else array[part] for array in arrays)
        return IntegerMatrix(*rows, bits=m.bits, group=m.group, zero=m.zero)

    return [cut(slice(0, 16)), cut(slice(16, None))]


def k_quant(n: int, k: int, bits: int, group: int, minima: bool) -> IntegerMatrix:
    """In the form of GGUF's K-quants: scales are integers times a scale of 256 columns."""
    rng = np.random.default_rng(0)

    def fine() -> np.ndarray:
        return rng.integers(-60, 60, (n, k // group)).astype(np.int8)

    def coarse() -> np.ndarray:
        return rng.uniform(1e-4, 1e-3, (n, k // 256)).astype(np.float32)

    q = rng.integers(0, 1 << bits, (n, k)).astype(np.uint8)
    if minima:
        return IntegerMatrix(q, fine(), fine(), coarse(), coarse(), bits=bits, group=group)
    return IntegerMatrix(q, fine(), None, coarse(), bits=bits, group=group, zero=1 << bits - 1)


FORMATS = {
    "int8": round_rows(random(35, 96).numpy(), 8),
    "int4": round_rows(random(35, 96, seed=1).numpy(), 4),
    "int4 in three parts": round_rows(random(70, 992, seed=5).numpy(), 4),
    "Q4_K": k_quant(20, 512, bits=4, group=32, minima=True),
    "Q6_K": k_quant(20, 256, bits=8, group=16, minima=False),
    "4 bits in groups of 16": k_quant(20, 256, bits=4, group=16, minima=False),
}


@pytest.mark.parametrize("matrix", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("rows", [0, 1, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_dense_product(
    ops: ReferenceOps, matrix: IntegerMatrix, rows: int, dtype: torch.dtype
) -> None:
    n, k = matrix.q.shape
    x, bias = random(rows, k, seed=2, dtype=dtype), random(n, seed=3, dtype=dtype)
    weight = ops.pack([Held(matrix)], dtype, DEVICE)
    product = x.double() @ torch.as_tensor(matrix.dense()).double().T
    # Nothing but the result is rounded; the interpreter truncates that to bfloat16.
    eps = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    near = {"rtol": eps, "atol": max(1e-4, eps)}
    found = ops.linear(x, weight, bias)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), product + bias.double(), **near)
    logits = ops.logits(x, weight)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), product, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("matrix", FORMATS.values(), ids=FORMATS)
def test_rows_are_looked_up(ops: ReferenceOps, matrix: IntegerMatrix) -> None:
    ids, table = torch.tensor([3, 3, 19]), ops.pack([Held(matrix)], torch.float32, DEVICE)
    expected = torch.as_tensor(matrix.dense())[ids]
    assert torch.equal(ops.embedding(ids, table), expected)
    assert torch.equal(ops.embedding(ids, table, 2.0), 2 * expected)


def test_formats_may_be_stacked(ops: ReferenceOps) -> None:
    parts = [Held(FORMATS["int8"]), Held(FORMATS["int4"], quantised=False), Held(FORMATS["int4"])]
    x, bias = random(3, 96, seed=2), random(105, seed=3)
    whole = torch.cat([part.dense(torch.float32) for part in parts])
    found = ops.linear(x, ops.pack(parts, torch.float32, DEVICE), bias)
    torch.testing.assert_close(found, x @ whole.T + bias, rtol=1e-5, atol=1e-4)


def test_neighbours_of_one_format_are_one_product(ops: ReferenceOps) -> None:
    int4, int8 = FORMATS["int4"], FORMATS["int8"]
    weight = ops.pack([Held(m) for m in (int4, int4, int8, int4)], torch.float32, DEVICE)
    assert [(len(piece), piece.bits) for piece in weight.pieces] == [(70, 4), (35, 8), (35, 4)]
    x = random(3, 96, seed=2)
    whole = torch.cat([torch.as_tensor(m.dense()) for m in (int4, int4, int8, int4)])
    found = ops.linear(x, weight)
    torch.testing.assert_close(found, x @ whole.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_integers_fit_into_mantissas(ops: ReferenceOps, dtype: torch.dtype, bits: int) -> None:
    """The interpreter computes no bfloat16; so what a GPU would is computed here."""
    product = sys.modules["pellucid.kernels.triton.product"]
    name = {torch.float16: "float16", torch.bfloat16: "bfloat16"}[dtype]
    power, value = product.mantissas(getattr(product.tl, name), bits)
    kind, held = (torch.int16, dtype) if power else (torch.int32, torch.float32)
    q = torch.arange(1 << bits, dtype=kind)
    for zero in (0, 1 << bits - 1):
        found = (q | (power or 0x4B000000)).view(held) - torch.tensor(value + zero, dtype=held)
        assert torch.equal(found.to(dtype).double(), q.double() - zero)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "int4 in three parts"])
def test_a_row_does_not_depend_on_its_company(ops: ReferenceOps, kind: str) -> None:
    """numpy's products depend on a row's place among 16, a GPU's do not: places are kept."""
    matrix = FORMATS[kind]
    x = random(50, matrix.q.shape[1], seed=2)
    weight = ops.pack([Held(matrix)], torch.float32, DEVICE)
    together = ops.linear(x, weight)
    for start, count in ((0, 1), (16, 1), (32, 5), (16, 34), (48, 2)):
        rows = slice(start, start + count)
        assert torch.equal(ops.linear(x[rows], weight), together[rows])


@pytest.mark.parametrize("kind", ["Q4_K", "int4 in three parts"])
def test_parts_are_added_alike_by_one_program_and_by_many(
    ops: ReferenceOps, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = random(20, FORMATS[kind].q.shape[1], seed=2), Held(FORMATS[kind])
    packed, bias = ops.pack([weight], torch.float32, DEVICE), random(weight.shape[0], seed=3)
    by_many = ops.linear(x, packed, bias)
    monkeypatch.setattr(sys.modules["pellucid.kernels.triton.product"], "FEW", 0)
    assert torch.equal(ops.linear(x, packed, bias), by_many)


def test_integers_stay_as_small_as_they_are(ops: ReferenceOps) -> None:
    before = ops.weight_bytes
    ops.pack([Held(FORMATS["int4"])], torch.float32, DEVICE)
    padded = 128
    assert ops.weight_bytes - before == 35 * (padded // 2 + 2 * 2 * padded // 32)


@pytest.mark.parametrize("height", [32, 64])
def test_taller_tiles_compute_the_same(ops: ReferenceOps, height: int) -> None:
    x, parts = random(70, 512, seed=2), [Held(FORMATS["Q4_K"])]
    tall = type(ops)(Thresholds(product_rows=height))
    weight = ops.pack(parts, torch.float32, DEVICE)
    torch.testing.assert_close(tall.linear(x, weight), ops.linear(x, weight), rtol=1e-5, atol=1e-4)
