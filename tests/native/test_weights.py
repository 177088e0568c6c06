"""From a file's blocks to packed weights: every format must come out as what `gguf` decodes."""

from __future__ import annotations

from collections.abc import Iterator

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.kernels.interface import IntegerMatrix
from pellucid.kernels.native_weights import NativeWeight, pack_matrices
from pellucid.quant.gguf_integers import unpack
from pellucid.quant.types import RawQuant
from tests.quant.test_gguf_integers import EXACT, random_blocks

_native = pytest.importorskip("pellucid._native")


class Stored:
    """A matrix of a file, as a loader hands it over."""

    def __init__(self, ggml_type: str, rows: int, columns: int) -> None:
        self.shape = (rows, columns)
        self._raw = RawQuant(ggml_type, self.shape, random_blocks(ggml_type, rows, columns))

    def dense(self, dtype: torch.dtype) -> Tensor:
        kind = gguf.GGMLQuantizationType[self._raw.ggml_type]
        return torch.from_numpy(gguf.quants.dequantize(self._raw.data, kind)).to(dtype)

    def integers(self) -> Iterator[IntegerMatrix] | None:
        return unpack(self._raw)


class Plain:
    def __init__(self, rows: int, columns: int) -> None:
        self.shape = (rows, columns)
        self._values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))

    def dense(self, dtype: torch.dtype) -> Tensor:
        return self._values.to(dtype)

    def integers(self) -> None:
        return None


def unpacked(weight: NativeWeight) -> np.ndarray:
    rows = []
    for piece in weight.pieces:
        out = np.empty((piece.n, piece.k), np.float32)
        for row in range(piece.n):
            _native.dequantize_row(piece, row, out[row])
        rows.append(out)
    return np.concatenate(rows)


@pytest.mark.parametrize("ggml_type", [*EXACT, "IQ4_XS"])
def test_every_format_is_packed_without_loss(ggml_type: str) -> None:
    stored = Stored(ggml_type, 37, 512)
    weight = pack_matrices([stored], torch.float32)
    np.testing.assert_allclose(unpacked(weight), stored.dense(torch.float32), rtol=3e-7, atol=1e-6)
    assert weight.table.format.kind == ("int4" if ggml_type.startswith("Q4") else "int8")


def test_a_stack_of_one_format_is_one_piece() -> None:
    parts = [Stored("Q4_K", rows, 256) for rows in (48, 16, 5)]
    weight = pack_matrices(parts, torch.float32)
    assert (len(weight.pieces), weight.n, weight.k) == (1, 69, 256)
    expected = torch.cat([part.dense(torch.float32) for part in parts])
    np.testing.assert_allclose(unpacked(weight), expected, rtol=3e-7, atol=1e-6)


def test_a_stack_of_several_formats_or_ragged_parts_is_several_pieces() -> None:
    parts = [Stored("Q4_K", 32, 256), Stored("Q6_K", 16, 256), Stored("Q6_K", 5, 256)]
    assert [piece.n for piece in pack_matrices(parts, torch.float32).pieces] == [32, 21]
    ragged = [Stored("Q4_K", 5, 256), Stored("Q4_K", 16, 256)]
    weight = pack_matrices(ragged, torch.float32)
    assert [piece.n for piece in weight.pieces] == [5, 16]
    with pytest.raises(ValueError, match="a table or an expert of 2 formats cannot be read"):
        _ = weight.table


@pytest.mark.parametrize("columns", [64, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_floats_take_the_dtype_of_the_model(dtype: torch.dtype, columns: int) -> None:
    plain = Plain(19, columns)
    weight = pack_matrices([plain], dtype)
    assert np.array_equal(unpacked(weight), plain.dense(dtype).float())
    narrow = dtype == torch.bfloat16 and columns % 2 == 0
    assert weight.table.format.kind == ("bfloat16" if narrow else "float32")


def test_chunks_of_a_large_matrix_become_one_piece() -> None:
    stored = Stored("Q8_0", 9000, 512)
    assert len(list(stored.integers() or ())) > 1
    weight = pack_matrices([stored], torch.float32)
    sample = np.empty((9000, 512), np.float32)
    _native.dequantize_row(weight.table, 8999, sample[8999])
    np.testing.assert_array_equal(sample[8999], stored.dense(torch.float32)[8999])
