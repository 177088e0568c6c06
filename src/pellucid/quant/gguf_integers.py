"""GGUF blocks -> the integers and scales that are in them, without loss.

Block layouts are facts of ggml's file format. Every function takes blocks, uint8 [rows, blocks per
row, bytes per block], and gives them back as an `IntegerMatrix` of those rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.interface import IntegerMatrix
from pellucid.quant.types import GGML_TYPES_BY_NAME, RawQuant

Bytes = NDArray[Any]  # uint8, which its operators would forget
Floats = NDArray[np.float32]

# Elements unpacked at once: what is in between stays small, and mostly within the cache.
_CHUNK_ELEMENTS = 1 << 21
_ROW_MULTIPLE = 16


def unpack(raw: RawQuant) -> Iterator[IntegerMatrix] | None:
    """The rows of `raw` in chunks (see `Matrix.integers`); None for types that are not known here.

    Those are the IQ types whose values come from tables of vectors, and the ternary ones.
    """
    decode = _DECODERS.get(raw.ggml_type)
    return None if decode is None else _chunks(raw, decode)


def row_chunks(shape: tuple[int, int]) -> Iterator[slice]:
    """Rows to be worked on at a time."""
    rows, columns = shape
    step = max(1, _CHUNK_ELEMENTS // columns // _ROW_MULTIPLE) * _ROW_MULTIPLE
    return (slice(start, start + step) for start in range(0, rows, step))


def _chunks(raw: RawQuant, decode: Callable[[Bytes], IntegerMatrix]) -> Iterator[IntegerMatrix]:
    block_bytes = GGML_TYPES_BY_NAME[raw.ggml_type].block_bytes
    for rows in row_chunks(raw.shape):
        part = np.ascontiguousarray(raw.data[rows])
        yield decode(part.reshape(len(part), -1, block_bytes))


# ---- blocks of 32


def _q4_0(blocks: Bytes) -> IntegerMatrix:
    return _with_zero(_nibbles(blocks[..., 2:]), _halves(blocks, 0), bits=4, zero=8)


def _q4_1(blocks: Bytes) -> IntegerMatrix:
    return _with_minima(_nibbles(blocks[..., 4:]), blocks, bits=4)


def _q5_0(blocks: Bytes) -> IntegerMatrix:
    q = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return _with_zero(q, _halves(blocks, 0), bits=8, zero=16)


def _q5_1(blocks: Bytes) -> IntegerMatrix:
    q = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return _with_minima(q, blocks, bits=8)


def _q8_0(blocks: Bytes) -> IntegerMatrix:
    # Flipping the sign bit adds 128.
    return _with_zero(blocks[..., 2:] ^ np.uint8(128), _halves(blocks, 0), bits=8, zero=128)


def _iq4_nl(blocks: Bytes) -> IntegerMatrix:
    q = _IQ4_VALUES[_nibbles(blocks[..., 2:])]
    return _with_zero(q, _halves(blocks, 0), bits=8, zero=128)


def _with_zero(q: Bytes, scales: Floats, bits: int, zero: int) -> IntegerMatrix:
    return IntegerMatrix(_flat(q), scales, bits=bits, zero=zero)


def _with_minima(q: Bytes, blocks: Bytes, bits: int) -> IntegerMatrix:
    return IntegerMatrix(_flat(q), _halves(blocks, 0), _halves(blocks, 2), bits=bits)


def _nibbles(packed: Bytes) -> Bytes:
    """16 bytes -> 32 values: all low halves, then all high ones."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _fifth_bits(packed: Bytes) -> Bytes:
    """32 bits -> 32 values of 0 or 16."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << 4


# The 16 levels of IQ4, plus 128.
_IQ4_VALUES = (
    np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]) + 128
).astype(np.uint8)


# ---- blocks of 256


def _q2_k(blocks: Bytes) -> IntegerMatrix:
    both = blocks[..., :16]  # scale and minimum of 16 groups
    q = _planes(blocks[..., 16:80], bits=2)
    return _k_quant(q, both & 15, both >> 4, _halves(blocks, 80), _halves(blocks, 82), group=16)


def _q3_k(blocks: Bytes) -> IntegerMatrix:
    high = _planes(blocks[..., :32], bits=1)
    q = _planes(blocks[..., 32:96], bits=2) | high << 2
    scales = _q3_k_scales(blocks[..., 96:108])
    return _signed(q, scales, _halves(blocks, 108), group=16, zero=4)


def _q4_k(blocks: Bytes) -> IntegerMatrix:
    scales, minima = _k_scales(blocks[..., 4:16])
    q = _halves_of_64(blocks[..., 16:144])
    d, dmin = _halves(blocks, 0), _halves(blocks, 2)
    return _k_quant(q, scales, minima, d, dmin, group=32, bits=4)


def _q5_k(blocks: Bytes) -> IntegerMatrix:
    scales, minima = _k_scales(blocks[..., 4:16])
    q = _halves_of_64(blocks[..., 48:176]) | _planes(blocks[..., 16:48], bits=1) << 4
    return _k_quant(q, scales, minima, _halves(blocks, 0), _halves(blocks, 2), group=32)


def _q6_k(blocks: Bytes) -> IntegerMatrix:
    low = blocks[..., :128].reshape(*blocks.shape[:2], 2, 1, 64)
    low = np.concatenate((low & 15, low >> 4), axis=-2).reshape(*blocks.shape[:2], 256)
    high = blocks[..., 128:192].reshape(*blocks.shape[:2], 2, 32)
    q = low | _planes(high, bits=2).reshape(low.shape) << 4
    return _signed(q, blocks[..., 192:208].view(np.int8), _halves(blocks, 208), group=16, zero=32)


def _iq4_xs(blocks: Bytes) -> IntegerMatrix:
    high = blocks[..., 2:4].copy().view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    low = blocks[..., 4:8]
    low = np.stack((low & 15, low >> 4), axis=-1).reshape(high.shape)
    scales = (low | (high & 3).astype(np.uint8) << 4).astype(np.int8) - np.int8(32)
    q = _IQ4_VALUES[_nibbles(blocks[..., 8:].reshape(*blocks.shape[:2], 8, 16))]
    return _signed(q, scales, _halves(blocks, 0), group=32, zero=128)


def _k_quant(
    q: Bytes, scales: Bytes, minima: Bytes, d: Floats, dmin: Floats, group: int, bits: int = 8
) -> IntegerMatrix:
    """w = d * scale * q - dmin * minimum."""
    return IntegerMatrix(
        _flat(q),
        _flat(scales).view(np.int8),
        _flat(minima).view(np.int8),
        super_scales=d,
        super_minima=-dmin,
        bits=bits,
        group=group,
    )


def _signed(q: Bytes, scales: NDArray[Any], d: Floats, group: int, zero: int) -> IntegerMatrix:
    """w = d * scale * (q - zero)."""
    return IntegerMatrix(_flat(q), _flat(scales), super_scales=d, group=group, zero=zero)


def _planes(packed: Bytes, bits: int) -> Bytes:
    """Runs of 32 bytes, in each of which lie 8 / `bits` runs of 32 values, lowest bits first."""
    runs = packed.reshape(*packed.shape[:-1], -1, 1, 32)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (runs >> shifts & np.uint8((1 << bits) - 1)).reshape(*packed.shape[:-1], -1)


def _halves_of_64(packed: Bytes) -> Bytes:
    """Runs of 32 bytes, each holding 32 values in low halves, then 32 in high ones."""
    return _planes(packed, bits=4)


def _k_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """12 bytes -> 8 scales and 8 minima of 6 bits each.

    The first four of each are the low bits of bytes 0..3 and 4..7; of the others, bytes 8..11 hold
    the low four bits, and the top two bits of bytes 0..7 the rest.
    """
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate((first & 63, third & 15 | first >> 6 << 4), axis=-1)
    minima = np.concatenate((second & 63, third >> 4 | second >> 6 << 4), axis=-1)
    return scales, minima


def _q3_k_scales(packed: Bytes) -> NDArray[Any]:
    """12 bytes -> 16 scales of 6 bits, less 32: low four bits in bytes 0..7, the rest in 8..11."""
    low = np.concatenate((packed[..., :8] & 15, packed[..., :8] >> 4), axis=-1)
    top = packed[..., None, 8:] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    scales: Bytes = low | top.reshape(low.shape) << 4
    return scales.view(np.int8) - np.int8(32)


# ---- all


def _halves(blocks: Bytes, offset: int) -> Floats:
    """The fp16 at byte `offset` of each block: [rows, blocks per row] float32."""
    number = np.ascontiguousarray(blocks[..., offset : offset + 2])
    return number.view("<f2")[..., 0].astype(np.float32)


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values).reshape(len(values), -1)


_DECODERS: dict[str, Callable[[Bytes], IntegerMatrix]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "IQ4_NL": _iq4_nl,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
}
