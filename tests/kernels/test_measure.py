from __future__ import annotations

import pytest
import torch

from pellucid.kernels import measure, native
from pellucid.kernels.dispatch import KernelsUnavailable
from pellucid.kernels.machine_limits import Limits
from pellucid.kernels.measure import Bench, Measurement
from pellucid.kernels.shapes import Shapes

pytestmark = pytest.mark.skipif(
    native.obstacle(torch.device("cpu")) is not None, reason="the C++ part is not built"
)

SHAPES = Shapes(hidden=64, inner=96, heads=4, kv_heads=2, head_dim=32, vocab=160)
LIMITS = Limits(memory=100.0, int8=1000.0, bfloat16=0.0, float32=500.0)


def test_every_op_is_as_exact_as_its_numbers_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "COLD_BYTES", 1 << 14)
    measured = list(Bench(threads=2).all(SHAPES, rows=[1, 5], context=70))
    assert {m.op for m in measured} == {
        *("qkv", "out", "gate_up", "down", "head", "decoding attention", "prompt attention"),
        *("add_rms_norm", "silu_mul", "gelu_mul", "rope_and_write_kv"),
    }
    # Activations of quantised products are int8, those of bfloat16 weights bfloat16.
    allowed = {"int4": 0.02, "int8": 0.02, "bfloat16": 5e-3, "float32": 2e-6}
    # Attention rounds as its dot products do: not at all, queries to 8 bits, or to bfloat16.
    attention = {"float32": 2e-6, "int8": 2e-2, "bfloat16": 5e-3}
    for m in measured:
        assert m.seconds > 0
        error = attention[m.arithmetic] if "attention" in m.op else 2e-6
        assert m.error < (allowed[m.weights] if m.op in SHAPES.linears else error), m


def test_operations_and_bytes_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    bench = Bench(threads=1)
    product = bench.linear("out", 64, 128, "int8", rows=3)
    assert product.operations == 2 * 3 * 64 * 128
    assert product.bytes == 64 * 128 + 64 * 4 * 2 + 3 * (128 + 4 * 64)
    # Four rows that see 3, 4, 5 and 6 keys: per key and head a product of 32 each for K and V.
    attention = bench.attention(SHAPES, torch.bfloat16, [(6, 4)])
    assert attention.operations == 2 * 2 * 32 * 4 * (3 + 4 + 5 + 6)


def test_a_share_is_of_whatever_is_slower() -> None:
    base = {"op": "x", "shape": "", "weights": "", "rows": 1, "seconds": 2.0, "error": 0.0}
    bound = Measurement(**base, bytes=100, operations=500, arithmetic="int8")
    assert bound.share(LIMITS) == ("memory", 0.5)
    busy = Measurement(**base, bytes=10, operations=500, arithmetic="float32")
    assert busy.share(LIMITS) == ("compute", 0.5)
    unknown = Measurement(**base, bytes=100, operations=500, arithmetic="bfloat16")
    assert unknown.share(LIMITS) == ("memory", 0.5)
    assert Measurement(**base, bytes=100).share(LIMITS) is None


def test_limits_are_measured_and_the_better_ones_count() -> None:
    assert LIMITS.better(Limits(1.0, 2000.0, 3.0, 4.0)) == Limits(100.0, 2000.0, 3.0, 500.0)


def test_heads_that_do_not_fit_are_refused_before_anything_is_measured() -> None:
    shapes = Shapes(hidden=64, inner=96, heads=4, kv_heads=2, head_dim=24, vocab=160)
    with pytest.raises(KernelsUnavailable, match="heads of 24"):
        measure.measure(shapes, [1], context=4, threads=1)
