"""Ops on single rows against the reference ops, over odd sizes, in poisoned memory."""

from __future__ import annotations

import math

import pytest
import torch

from pellucid.kernels.int8_heads import round_heads
from pellucid.kernels.reference import ReferenceOps

from .programs import Recorder, assert_close, by_slot, key_rows, native, run, slices

REFERENCE = ReferenceOps()
SIZES = [1, 3, 16, 31, 100, 576]
ROWS = [0, 1, 7, 130]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", ROWS)
def test_norms(size: int, rows: int) -> None:
    values, weight, bias = random(rows + 1, 2 * size) * 3, random(size), random(size + 1)[1:]
    update, residual = values[:rows].split(size, dim=1)
    total = residual + update
    expected = {
        "add_rms_norm": REFERENCE.rms_norm(total, weight, 1e-5),
        "add_layer_norm": REFERENCE.layer_norm(total, weight, bias, 1e-5),
    }
    for name, normed in expected.items():
        recorder = Recorder()
        both = recorder.new(2 * size)
        out, new_total = slices(both, size, size)
        parameters = (weight, bias) if name == "add_layer_norm" else (weight,)
        arguments = (*slices(recorder.rows(values), size, size), *parameters, 1e-5)
        getattr(recorder.program, name)(out, new_total, *arguments)
        program = recorder.finish(both)
        result = run(program, range(rows), 2 * size)
        assert torch.equal(result[:, size:], total)
        assert_close(result[:, :size], normed)


def test_norms_of_heads() -> None:
    values, weight, bias = random(9, 5 * 48), random(48), random(48)
    for name, parameters in (("rms_norm", (weight,)), ("layer_norm", (weight, bias))):
        recorder = Recorder()
        out = recorder.op(name, 5 * 48, recorder.rows(values), *parameters, 1e-6)
        result = run(recorder.finish(out), range(9), 5 * 48)
        expected = getattr(REFERENCE, name)(values.view(9, 5, 48), *parameters, 1e-6)
        assert_close(result, expected.flatten(1))


def test_norm_without_a_residual() -> None:
    values, weight = random(4, 64), random(64)
    recorder = Recorder()
    both = recorder.new(128)
    out, total = slices(both, 64, 64)
    recorder.program.add_rms_norm(out, total, recorder.rows(values), None, weight, 1e-5)
    result = run(recorder.finish(both), range(4), 128)
    assert torch.equal(result[:, 64:], values)
    assert_close(result[:, :64], REFERENCE.rms_norm(values, weight, 1e-5))


GATED = {
    "silu_mul": ((), lambda x: x / (1 + torch.exp(-x))),
    "gelu_mul exact": ((False,), lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2),
    "gelu_mul tanh": (
        (True,),
        lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    ),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", GATED)
def test_gated_activations(name: str, size: int) -> None:
    arguments, formula = GATED[name]
    values = random(8, 2 * size) * 4
    recorder = Recorder()
    out = recorder.op(name.split()[0], size, recorder.rows(values), *arguments)
    gate, up = values.double().split(size, dim=1)
    assert_close(run(recorder.finish(out), range(8), size), formula(gate) * up, 1e-6)


@pytest.mark.parametrize("approximate", [False, True])
def test_gelu(approximate: bool) -> None:
    values = torch.linspace(-12, 12, 4001).view(1, -1)
    recorder = Recorder()
    out = recorder.op("gelu", 4001, recorder.rows(values), approximate)
    formula = GATED["gelu_mul tanh" if approximate else "gelu_mul exact"][1]
    result = run(recorder.finish(out), range(1), 4001).double()
    error = (result - formula(values.double())).abs()
    assert (error <= 2e-6 * values.abs()).all()  # 1 + erf and 1 + tanh cancel below zero


def test_exp_is_accurate_to_the_last_bits() -> None:
    """silu(-x) e^x (1 + e^-x) / -x is 1; so silu's error is that of exp."""
    values = torch.cat((torch.linspace(-80, 80, 9999), torch.linspace(-1e-3, 1e-3, 101))).view(
        1, -1
    )
    count = values.shape[1]
    recorder = Recorder()
    stacked = recorder.rows(torch.cat((values, torch.ones_like(values)), dim=1))
    out = recorder.op("silu_mul", count, stacked)
    result = run(recorder.finish(out), range(1), count).double()
    x = values.double()
    expected = x / (1 + torch.exp(-x))
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_softcap(cap: float) -> None:
    values = torch.cat((random(1, 500) * 40, torch.linspace(-1e-4, 1e-4, 101).view(1, -1)), dim=1)
    recorder = Recorder()
    out = recorder.op("softcap", 601, recorder.rows(values), cap)
    result = run(recorder.finish(out), range(1), 601).double()
    expected = torch.tanh(values.double() / cap) * cap
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("index", ["tokens", "positions"])
def test_embedding(index: str) -> None:
    table = random(20, 33)
    ids = torch.tensor([3, 19, 0, 3])
    recorder = Recorder()
    out = recorder.new(33)
    recorder.program.embedding(out, native.pack_float(table), 2.5, index)
    program = recorder.finish(out)
    tokens, positions = (ids, torch.zeros(4, dtype=torch.int64))
    if index == "positions":
        tokens, positions = positions, tokens
    assert torch.equal(run(program, tokens, 33, positions=positions), table[ids] * 2.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("head_dim", "rotated"), [(64, 64), (80, 32), (16, 10)])
def test_rope_and_write_kv(head_dim: int, rotated: int, dtype: torch.dtype) -> None:
    heads, groups, rows, block_size = 4, 2, 11, 3
    sizes = (heads * head_dim, groups * head_dim, groups * head_dim)
    values = random(rows, sum(sizes))
    angles = random(50, rotated // 2)
    pool = [torch.full((7, block_size, groups, head_dim), torch.nan, dtype=dtype) for _ in "kv"]
    recorder = Recorder()
    q, k, v = slices(recorder.rows(values), *sizes)
    tables = angles.cos(), angles.sin()
    out = recorder.op("rope_and_write_kv", sizes[0], q, k, v, *tables, native.KVPool(*pool))
    slots = torch.randperm(7 * block_size, generator=torch.Generator().manual_seed(1))[:rows]
    positions = torch.arange(rows) * 4
    program = recorder.finish(out)
    result = run(program, range(rows), sizes[0], positions=positions, slots=slots)

    cos, sin = tables[0][positions], tables[1][positions]
    want_q, want_k, want_v = (part.view(rows, -1, head_dim) for part in values.split(sizes, dim=1))
    assert_close(result, REFERENCE.rope(want_q, cos, sin).flatten(1))
    rows_of = (key_rows(pool[0]), by_slot(pool[1]))
    k_pool, v_pool = (part.view(-1, groups, head_dim) for part in rows_of)
    tolerance = max(2e-6, torch.finfo(dtype).eps)
    assert_close(k_pool[slots].float(), REFERENCE.rope(want_k, cos, sin), tolerance)
    assert torch.equal(v_pool[slots], want_v.to(dtype))
    untouched = torch.ones(7 * block_size, dtype=torch.bool)
    untouched[slots] = False
    assert k_pool[untouched].isnan().all()
    assert v_pool[untouched].isnan().all()


def test_float16_pool_rounds_to_nearest_and_saturates() -> None:
    """All halves, the middles between them and what lies beside these; and what is beyond."""
    halves = torch.arange(0x7C00, dtype=torch.int16).view(torch.float16).float()
    middles = (halves[1:] + halves[:-1]) / 2
    beside = [torch.nextafter(middles, middles + sign) for sign in (-1, 1)]
    beyond = torch.tensor([65504.0, 65519.9, 65520.0, 1e6, 3e38, torch.inf, 1e-30])
    values = torch.cat([halves, middles, *beside, beyond])
    values = torch.cat([values, -values])
    values = torch.cat([values, torch.zeros(-len(values) % 16)]).view(1, -1)
    pool = [torch.zeros(1, 1, values.numel() // 16, 16, dtype=torch.float16) for _ in "kv"]
    recorder = Recorder()
    rows = recorder.rows(values)
    recorder.program.write_kv(rows, rows, native.KVPool(*pool))
    run(recorder.finish(rows), range(1), values.numel(), slots=torch.zeros(1, dtype=torch.int64))
    expected = values.clamp(-65504, 65504).half()
    for part in pool:
        assert torch.equal(part.view(1, -1).view(torch.int16), expected.view(torch.int16))


def test_float16_pool_keeps_nan() -> None:
    """A model that goes wrong must not look as if it had not."""
    values = torch.full((1, 16), torch.nan)
    pool = [torch.zeros(1, 1, 1, 16, dtype=torch.float16) for _ in "kv"]
    recorder = Recorder()
    rows = recorder.rows(values)
    recorder.program.write_kv(rows, rows, native.KVPool(*pool))
    run(recorder.finish(rows), range(1), 16, slots=torch.zeros(1, dtype=torch.int64))
    assert all(part.isnan().all() for part in pool)


def test_int8_pool_has_a_scale_per_head() -> None:
    """A zero head and a tiny one among others; the reference's numbers, summed in another order."""
    values = random(6, 3 * 48) * torch.logspace(-8, 4, 3).repeat_interleave(48)
    values[2] = 0.0
    values[3, :48] = 1e-33
    pool = [torch.zeros(3, 2, 3, 48, dtype=torch.int8) for _ in "kv"]
    scales = [torch.zeros(3, 2, 3) for _ in "kv"]
    recorder = Recorder()
    rows = recorder.rows(values)
    recorder.program.write_kv(rows, rows, native.KVPool(*pool, *scales))
    slots = torch.tensor([5, 0, 2, 4, 1, 3])
    run(recorder.finish(rows), range(6), values.shape[1], slots=slots)
    want, want_scales = round_heads(values.view(6, 3, 48))
    for part, part_scales in zip((key_rows(pool[0]), by_slot(pool[1])), scales, strict=True):
        assert (part.view(6, 3, 48)[slots].int() - want.int()).abs().max() <= 1
        torch.testing.assert_close(
            by_slot(part_scales).view(6, 3)[slots], want_scales, rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_int8_pool_shows_what_is_not_finite(wrong: float) -> None:
    values = torch.ones(1, 48)
    values[0, 17] = wrong
    pool = [torch.zeros(1, 1, 1, 48, dtype=torch.int8) for _ in "kv"]
    scales = [torch.zeros(1, 1, 1) for _ in "kv"]
    recorder = Recorder()
    rows = recorder.rows(values)
    recorder.program.write_kv(rows, rows, native.KVPool(*pool, *scales))
    run(recorder.finish(rows), range(1), 48, slots=torch.zeros(1, dtype=torch.int64))
    assert not any(part.isfinite().any() for part in scales)
