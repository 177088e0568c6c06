"""Dequantisation, against the `gguf` package block by block."""

from __future__ import annotations

import warnings

import gguf
import numpy as np
import pytest
import torch

from pellucid.quant import gguf_blocks
from pellucid.quant.gguf_blocks import dequantize
from pellucid.quant.types import DENSE_TYPES, GGML_TYPES

QUANTISED = [t.name for t in GGML_TYPES.values() if t.name not in DENSE_TYPES]
ROUND_TRIP = {"Q4_0": 0.16, "Q4_1": 0.14, "Q5_0": 0.09, "Q5_1": 0.07, "Q8_0": 0.01}


def random_blocks(name: str, rows: int, blocks: int) -> np.ndarray:
    """Random bits; scales may come out as anything, infinity and NaN included."""
    kind = gguf.GGMLQuantizationType[name]
    size = gguf.GGML_QUANT_SIZES[kind][1] * blocks
    return np.random.default_rng(7).integers(0, 256, (rows, size), dtype=np.uint8)


@pytest.mark.parametrize("name", QUANTISED)
def test_every_type_decodes_as_gguf_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_blocks(name, rows=5, blocks=2)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    monkeypatch.setattr(gguf_blocks, "_CHUNK_ELEMENTS", 2 * want.shape[1])  # two rows at a time
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = dequantize(raw, name, torch.float32)
    np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("name", ROUND_TRIP)
def test_quantised_values_come_back(name: str) -> None:
    data = np.random.default_rng(0).uniform(-1, 1, (6, 64)).astype(np.float32)
    raw = gguf.quants.quantize(data, gguf.GGMLQuantizationType[name])
    got = dequantize(raw, name, torch.float32)
    assert got.shape == (6, 64)
    assert np.abs(got.numpy() - data).max() < ROUND_TRIP[name]


@pytest.mark.parametrize(
    ("name", "stored"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dense_types(name: str, stored: torch.dtype, dtype: torch.dtype) -> None:
    data = torch.randn(3, 5).to(stored)
    raw = data.view(torch.uint8).numpy()
    raw.flags.writeable = False  # as in a mapped file
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = dequantize(raw, name, dtype)
    assert torch.equal(got, data.to(dtype))


def test_the_result_owns_its_memory() -> None:
    raw = np.arange(4, dtype=np.float32).view(np.uint8).reshape(1, 16)
    got = dequantize(raw, "F32", torch.float32)
    raw[:] = 0
    assert got.tolist() == [[0.0, 1.0, 2.0, 3.0]]


def test_rounds_once_from_the_exact_value() -> None:
    raw = random_blocks("Q4_K", rows=4, blocks=1)
    exact = dequantize(raw, "Q4_K", torch.float32)
    torch.testing.assert_close(
        dequantize(raw, "Q4_K", torch.bfloat16), exact.bfloat16(), rtol=0, atol=0, equal_nan=True
    )
