"""Integers and scales of GGUF blocks must be the numbers that the `gguf` package decodes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from pellucid.quant.gguf_integers import unpack
from pellucid.quant.types import GGML_TYPES_BY_NAME, RawQuant

EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def random_blocks(name: str, rows: int, columns: int) -> np.ndarray:
    """Rows of blocks with every bit pattern, but for scales that are ordinary numbers."""
    block = GGML_TYPES_BY_NAME[name]
    rng = np.random.default_rng(0)
    blocks = rng.integers(
        0, 256, (rows, columns // block.block_size, block.block_bytes), dtype=np.uint8
    )
    halves = {"Q3_K": [108], "Q6_K": [208], "Q2_K": [80, 82]}
    two = name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")
    for offset in halves.get(name, [0, 2] if two else [0]):
        scales = rng.normal(size=blocks.shape[:2]).astype("<f2")
        blocks[..., offset : offset + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("name", [*EXACT, "IQ4_XS"])
def test_nothing_is_lost(name: str) -> None:
    rows, columns = 50, 768
    data = random_blocks(name, rows, columns)
    chunks = unpack(RawQuant(name, (rows, columns), data))
    assert chunks is not None
    found = np.concatenate([chunk.dense() for chunk in chunks])
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
    # The same products, but for the order in which three factors are multiplied.
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-6)


def test_large_matrices_come_in_chunks_of_whole_strips() -> None:
    rows, columns = 3001, 1024
    data = random_blocks("Q8_0", rows, columns)
    chunks = unpack(RawQuant("Q8_0", (rows, columns), data))
    assert chunks is not None
    sizes = [len(chunk.q) for chunk in chunks]
    assert len(sizes) > 1
    assert sum(sizes) == rows
    assert all(size % 16 == 0 for size in sizes[:-1])


def test_types_of_vector_tables_are_left_to_others() -> None:
    assert unpack(RawQuant("IQ2_XXS", (16, 256), np.zeros((16, 66), np.uint8))) is None
