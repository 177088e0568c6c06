"""What measures a GPU, on the CPU: cases, their counts, and thresholds from measured times."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pellucid.kernels.gpu import Stopwatch
from pellucid.kernels.gpu_cases import Case, Cases
from pellucid.kernels.gpu_measure import GpuLimits, GpuMeasurement, measure_case, measure_limits
from pellucid.kernels.reference import ReferenceOps
from pellucid.kernels.shapes import Shapes
from pellucid.kernels.triton.thresholds import NEVER, Thresholds
from tests.device import DEVICE

SHAPES = Shapes(hidden=64, inner=96, heads=4, kv_heads=2, head_dim=32, vocab=160)
WATCH = Stopwatch(DEVICE, 0.0)


def test_every_op_is_measured_and_near_the_reference(ops: ReferenceOps) -> None:
    cases = list(Cases(DEVICE, torch.float32).all(SHAPES, [3], context=70))
    measured = [m for case in cases for m in measure_case(WATCH, case, [ops, ReferenceOps()])]
    assert {m.op for m in measured} == {
        *("qkv", "out", "gate_up", "down", "head", "decoding attention", "prompt attention"),
        *("add_rms_norm", "silu_mul", "rope_and_write_kv"),
    }
    assert {m.kernels for m in measured if m.weights == "int4"} == {"triton"}
    assert {m.kernels for m in measured if m.op == "silu_mul"} == {"triton", "torch"}
    for m in measured:
        assert m.seconds > 0
        assert m.error is not None
        assert m.error < 1e-5, m


def test_bytes_and_operations_are_those_of_the_definition() -> None:
    cases = Cases(DEVICE, torch.bfloat16)
    product = cases.integer_product("out", 64, 128, 4, rows=3)
    assert product.bytes == 64 * 128 // 2 + 64 * 4 * 2 + 2 * 3 * (128 + 64)
    assert product.operations == 2 * 3 * 64 * 128
    # Four rows that see 3, 4, 5 and 6 keys.
    attention = cases.attention(SHAPES, [(6, 4)])
    assert attention.operations == 2 * 2 * 32 * 4 * (3 + 4 + 5 + 6)
    assert attention.bytes == 2 * (2 * 4 * 4 * 32 + 2 * 6 * 2 * 32)
    assert cases.gated(5, 10).bytes == 2 * 3 * 5 * 10


def test_a_share_is_of_whatever_is_slower() -> None:
    def measured(num_bytes: int, operations: int) -> GpuMeasurement:
        return GpuMeasurement("x", "", "", 1, "triton", 2.0, num_bytes, operations, None)

    limits = GpuLimits(memory=100.0, compute=1000.0)
    assert measured(100, 500).share(limits) == ("memory", 0.5)
    assert measured(10, 500).share(limits) == ("compute", 0.25)
    found = measure_limits(WATCH, torch.float32, copy_bytes=1 << 16, matrix=32)
    assert found.memory > 0
    assert found.compute > 0


def test_a_threshold_is_where_triton_begins_to_win_for_good(ops: ReferenceOps) -> None:
    from pellucid.kernels.triton.calibrate import first_won

    assert first_won({64: 0.5, 128: 0.9}) == 0
    assert first_won({64: 0.5, 128: 1.5, 256: 0.9}) == 129
    assert first_won({64: 0.5, 128: 1.5}) == NEVER


def test_thresholds_follow_the_times(ops: ReferenceOps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton wins from 128 columns on, but never on RoPE; a taller tile must have the same bits."""
    from pellucid.kernels.triton import calibrate

    def ratio(watch: Stopwatch, case: Case, thresholds: Thresholds | None = None) -> float:
        columns = 0 if case.op == "rope_and_write_kv" else case.inputs[0].shape[-1]
        return 0.5 if columns >= 128 else 2.0

    monkeypatch.setattr(calibrate, "_ratio", ratio)
    monkeypatch.setattr(calibrate, "same_bits", lambda *case: case[-2] == 32)
    lines: list[str] = []
    sizes = calibrate.Sizes((1,), (64, 128), (64, 128), (64, 128), 40, 70, ((40, 96),), 70)
    found = calibrate.calibrate(WATCH, torch.float32, sizes, lines.append)
    expected = Thresholds(rms_norm=65, gated=0, rope=NEVER, attention=65)
    assert (found.rms_norm, found.gated, found.rope, found.attention) == (65, 0, NEVER, 65)
    assert found.head == 65
    assert found.dense == NEVER
    assert "dense, 64x64, 1 rows: Triton takes 2.00 of cuBLAS's time" in lines
    assert found.product_rows in (16, 32)
    assert found.dense_rows == expected.dense_rows
    assert "product_rows=64: other bits than 16" in lines
    assert "rope, 64 columns: Triton takes 2.00 of torch's time" in lines


def test_taller_tiles_are_compared_with_the_usual_ones(ops: ReferenceOps) -> None:
    from pellucid.kernels.triton.calibrate import same_bits

    cases = Cases(DEVICE, torch.float32)
    assert same_bits(cases, (40, 96), "product_rows", 16, 70)


def test_copies_of_work_share_no_tensor_and_give_the_same(ops: ReferenceOps) -> None:
    cases = Cases(DEVICE, torch.float32)
    for case in (cases.add_rms_norm(3, 64), cases.integer_product("", 40, 64, 4, 2)):
        moved: list[tuple[int, ...]] = []

        def prepare(ops, x, case=case, moved=moved):
            moved.append(tuple(t.data_ptr() for t in x))
            return case.prepare(ops, x)

        results = [work() for work in replace(case, prepare=prepare).copies(ops, 3)]
        assert all(torch.equal(result, results[0]) for result in results)
        assert len({pointer for pointers in moved for pointer in pointers}) == 3 * len(case.inputs)


def test_logits_are_those_of_the_head(ops: ReferenceOps) -> None:
    case = Cases(DEVICE, torch.bfloat16).logits(40, 64, 3)
    assert case.bytes == 2 * (3 * 64 + 40 * 64) + 4 * 3 * 40
    assert case.prepare(ops, case.inputs)().dtype == torch.float32
