"""Weights of every format the native kernels know, with the product they stand for in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# name -> (bits, group, zero; None means minima, scales)
QUANT_FORMATS: dict[str, tuple[int, int, int | None, str]] = {
    "q4_0": (4, 32, 8, "half"),
    "q4_1": (4, 32, None, "half"),
    "q4_0 float": (4, 32, 8, "float"),
    "q4_1 float": (4, 32, None, "float"),
    "q4_k": (4, 32, None, "super"),
    "q8_0": (8, 32, 128, "half"),
    "q5_1": (8, 32, None, "half"),
    "q5_k": (8, 32, None, "super"),
    "q6_k": (8, 16, 32, "super"),
    "q2_k": (8, 16, None, "super"),
    "g16 float": (8, 16, 4, "float"),
    "g16 minima": (8, 16, None, "half"),
}
FLOAT_FORMATS = ["float32", "bfloat16", "bfloat16 rounded"]
EPSILON = float(np.finfo(np.float32).eps)


BLOCK = np.dtype([("q", "i1", 32), ("scale", "f4"), ("scaled_sum", "f4"), ("sum16", "i2", 2)])
MAX_OUTLIERS = 8


def row_type(k: int) -> np.dtype:
    """One quantised row of `k` columns."""
    return np.dtype([("blocks", BLOCK, k // 32), ("outliers", "f4", MAX_OUTLIERS)])


def quantise(x: np.ndarray, outliers: Sequence[int] = ()) -> np.ndarray:
    """Rows as the kernels make them for their products: row_type [rows]."""
    from pellucid import _native

    kind = row_type(x.shape[1])
    out = np.full((len(x), kind.itemsize), 77, dtype=np.uint8)
    _native.quantize_rows(x, out, outliers)
    return out.view(kind)[:, 0]


def as_bytes(rows: np.ndarray) -> np.ndarray:
    return rows[:, None].view(np.uint8)


def meaning(rows: np.ndarray, outliers: Sequence[int] = ()) -> np.ndarray:
    """What quantised rows stand for: [rows, k] float64."""
    blocks = rows["blocks"]
    x = (blocks["q"] * blocks["scale"][..., None].astype(np.float64)).reshape(len(rows), -1)
    for index, column in enumerate(outliers):
        x[:, column] += rows["outliers"][:, index]
    return x


@dataclass
class Case:
    n: int
    k: int
    quantised: bool
    weight: Any
    dense: np.ndarray  # [n, k] float64, what the weight stands for
    rows32: np.ndarray  # [n, k] float32, what dequantising gives
    bias: np.ndarray | None
    rounds_activations: bool = False

    def expected(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The product in float64, and how far fp32 accumulation may be off, element by element."""
        if self.quantised:
            x64 = meaning(quantise(x))
        elif self.rounds_activations:
            x64 = bfloat16_to_float(to_bfloat16(x)).astype(np.float64)
        else:
            x64 = x.astype(np.float64)
        bias = 0.0 if self.bias is None else self.bias.astype(np.float64)
        magnitude = np.abs(x64) @ np.abs(self.dense).T + np.abs(bias)
        return x64 @ self.dense.T + bias, EPSILON * (8 + self.k / 16) * magnitude * 4 + 1e-30


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Bits of x as bf16, rounded to nearest even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bfloat16_to_float(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def make_case(name: str, n: int, k: int, rng: np.random.Generator) -> Case | None:
    """A random weight, with a bias every other time; None if the format cannot have this shape."""
    bias = rng.standard_normal(n, dtype=np.float32) if (n // 3) % 2 else None
    if name in FLOAT_FORMATS:
        return _float_case(name, n, k, bias, rng)
    bits, group, zero, scales = QUANT_FORMATS[name]
    if k % (256 if scales == "super" else 32):
        return None
    return _quant_case(n, k, bits, group, zero, scales, bias, rng)


def _float_case(
    name: str, n: int, k: int, bias: np.ndarray | None, rng: np.random.Generator
) -> Case:
    from pellucid import _native

    w = rng.standard_normal((n, k), dtype=np.float32)
    if name == "float32":
        return Case(n, k, False, _native.pack_float(w), w.astype(np.float64), w, bias)
    rounds = name == "bfloat16 rounded"
    bits = to_bfloat16(w)
    w = bfloat16_to_float(bits)
    weight = _native.pack_bfloat16(bits, rounds)
    # Only this instruction has bf16 products; elsewhere activations stay fp32.
    rounds = rounds and _native.isa() == "avx512bf16"
    return Case(n, k, False, weight, w.astype(np.float64), w, bias, rounds)


def _quant_case(
    n: int,
    k: int,
    bits: int,
    group: int,
    zero: int | None,
    scales: str,
    bias: np.ndarray | None,
    rng: np.random.Generator,
) -> Case:
    from pellucid import _native

    groups = k // group
    q = rng.integers(0, 1 << bits, (n, k), dtype=np.uint8)
    options = {"bits": bits, "group": group, "zero": zero or 0}

    def values() -> np.ndarray:
        v = rng.standard_normal((n, groups), dtype=np.float32)
        return v.astype(np.float16).astype(np.float32) if scales == "half" else v

    if scales == "super":
        subs = [rng.integers(-128, 128, (n, groups), dtype=np.int8) for _ in range(2)]
        supers = [
            rng.standard_normal((n, k // 256)).astype(np.float16).astype(np.float32)
            for _ in range(2)
        ]
        scale, minimum = (
            np.repeat(b, 256 // group, axis=1) * a.astype(np.float32)
            for a, b in zip(subs, supers, strict=True)
        )
        minima = (subs[1], supers[1]) if zero is None else (None, None)
        weight = _native.pack_super(q, subs[0], supers[0], *minima, **options)
    else:
        scale, minimum = values(), values()
        weight = _native.pack_quantised(q, scale, minimum if zero is None else None, **options)
        assert weight.format.scale_kind == scales

    centred = q.astype(np.float32) - np.float32(zero or 0)
    wide = np.repeat(scale, group, axis=1)
    offset = np.repeat(minimum, group, axis=1) if zero is None else np.float32(0)
    dense = wide.astype(np.float64) * centred + offset
    return Case(n, k, True, weight, dense, wide * centred + offset, bias)
