"""Reader of GGUF files, versions 2 and 3, little-endian.

    +-------------+-----------------+---------------+---------+---------------------------+
    | magic,      | metadata:       | tensor infos: | padding | tensor data, each at its  |
    | version,    | key, type,      | name, shape,  |         | own aligned offset from   |
    | two counts  | value           | type, offset  |         | the start of this part    |
    +-------------+-----------------+---------------+---------+---------------------------+

A file from the internet is hostile until shown otherwise: every count, length and offset is checked
against the file's size before it is used, no allocation is larger than what the file itself
occupies justifies, and whatever is wrong becomes one `ModelError`. Tensor data is never copied:
`GGUFTensor.raw` is a view of the mapped file. No torch here.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import ModelError
from pellucid.quant.types import GGML_TYPES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_DIMS = 4
MAX_NESTING = 4  # arrays of arrays; no file in use nests at all
MAX_NAME_BYTES = 65_535
MAX_HEADER_BYTES = 1 << 29
MAX_ARRAY_ITEMS = 1 << 22  # over all arrays of a file
MAX_ENTRIES = 1 << 16  # of metadata, and of tensors

_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor, still as its file holds it.

    `shape` is in torch's order, outermost first. `raw` is read-only uint8, [rows, bytes per row],
    where a row is the innermost dimension and rows are all others together.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: str
    raw: NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A parsed header. Metadata arrays are lists; strings are str, numbers int or float."""

    path: Path
    version: int
    metadata: dict[str, Any] = field(repr=False)
    tensors: dict[str, GGUFTensor] = field(repr=False)


def read_gguf(path: str | Path) -> GGUFFile:
    """Map a GGUF file and parse its header.

    Raises:
        ModelError: the file cannot be opened, is not GGUF, is damaged, or uses what is unsupported.
    """
    path = Path(path)
    try:
        return _parse(path, _map(path))
    except _Damage as damage:
        raise ModelError(f"{path.name} cannot be loaded: {damage}") from None


class _Damage(Exception):  # noqa: N818 - never leaves this module
    """What is wrong with the file."""


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise _Damage("it is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None


def _quoted(name: str) -> str:
    """A name out of the file, fit for one line of an error message."""
    return f"{name!r:.80}"


class _Cursor:
    """Reads forward through the header; nothing is taken that the file does not hold."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self.buffer = buffer
        self.position = 0
        self.end = min(len(buffer), MAX_HEADER_BYTES)
        self.items_left = MAX_ARRAY_ITEMS

    def advance(self, num_bytes: int, what: str) -> int:
        """Step over `num_bytes` and return where they began."""
        start = self.position
        if num_bytes > self.end - start:
            if self.end == MAX_HEADER_BYTES:
                raise _Damage(f"its header is larger than {MAX_HEADER_BYTES >> 20} MiB")
            raise _Damage(f"the file ends inside {what}")
        self.position = start + num_bytes
        return start

    def uint32(self, what: str) -> int:
        value: int = _UINT32.unpack_from(self.buffer, self.advance(4, what))[0]
        return value

    def uint64(self, what: str) -> int:
        value: int = _UINT64.unpack_from(self.buffer, self.advance(8, what))[0]
        return value

    def count(self, what: str) -> int:
        value = self.uint64("the header")
        if value > MAX_ENTRIES:
            raise _Damage(f"it claims {value} {what}; the limit is {MAX_ENTRIES}")
        return value

    def string(self, what: str, limit: int = MAX_HEADER_BYTES) -> str:
        length = self.uint64(what)
        if length > limit:
            raise _Damage(f"{what} is {length} bytes long; the limit is {limit}")
        start = self.advance(length, what)
        try:
            return self.buffer[start : start + length].decode()
        except UnicodeDecodeError:
            raise _Damage(f"{what} is not valid UTF-8") from None

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        """A metadata value of type number `kind`."""
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what, depth + 1)
        return self._scalars(kind, 1, what)[0]

    def _array(self, what: str, depth: int) -> list[Any]:
        if depth > MAX_NESTING:
            raise _Damage(f"{what} nests arrays more than {MAX_NESTING} deep")
        kind = self.uint32(what)
        count = self.uint64(what)
        if count > self.items_left:
            raise _Damage(f"its metadata arrays hold more than {MAX_ARRAY_ITEMS} items")
        self.items_left -= count
        if kind == _STRING:
            return self._strings(count, what)
        if kind == _ARRAY:
            return [self.value(kind, what, depth) for _ in range(count)]
        return self._scalars(kind, count, what)

    def _strings(self, count: int, what: str) -> list[str]:
        # A vocabulary has 150,000 of them and more: this loop is most of a header's parsing time.
        buffer, position, end, unpack = self.buffer, self.position, self.end, _UINT64.unpack_from
        items = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + unpack(buffer, position)[0]
                if position > end:
                    raise _Damage(f"the file ends inside {what}")
                items.append(buffer[start:position].decode())
        except struct.error:
            raise _Damage(f"the file ends inside {what}") from None
        except UnicodeDecodeError:
            raise _Damage(f"an item of {what} is not valid UTF-8") from None
        self.position = position
        return items

    def _scalars(self, kind: int, count: int, what: str) -> list[Any]:
        dtype = _SCALARS.get(kind)
        if dtype is None:
            raise _Damage(f"{what} has the unknown type {kind}")
        start = self.advance(count * dtype.itemsize, what)
        values: list[Any] = np.frombuffer(self.buffer, dtype, count, start).tolist()
        return values


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    shape: tuple[int, ...]
    ggml_type: str
    rows: int
    row_bytes: int
    offset: int  # from the start of the data part

    @property
    def end(self) -> int:
        return self.offset + self.rows * self.row_bytes


def _parse(path: Path, mapped: mmap.mmap) -> GGUFFile:
    cursor = _Cursor(mapped)
    version = _read_version(cursor)
    num_tensors = cursor.count("tensors")
    num_pairs = cursor.count("metadata keys")
    metadata = _read_metadata(cursor, num_pairs)
    alignment = _alignment(metadata)
    infos = _read_tensor_infos(cursor, num_tensors, alignment)
    data_start = -(-cursor.position // alignment) * alignment
    _check_extents(infos, len(mapped) - data_start)
    tensors = {info.name: _view(mapped, data_start, info) for info in infos}
    return GGUFFile(path, version, metadata, tensors)


def _read_version(cursor: _Cursor) -> int:
    magic = cursor.buffer[: cursor.advance(4, "the header") + 4]
    if magic != MAGIC:
        raise _Damage("it is not a GGUF file")
    version = cursor.uint32("the header")
    if version & 0xFFFF == 0 and version:
        raise _Damage("it is big-endian, which is not supported")
    if version not in VERSIONS:
        raise _Damage(f"its GGUF version is {version}; supported are 2 and 3")
    return version


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string("a metadata key", MAX_NAME_BYTES)
        what = f"metadata {_quoted(key)}"
        if key in metadata:
            raise _Damage(f"it has {what} twice")
        metadata[key] = cursor.value(cursor.uint32(what), what)
    return metadata


def _alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT:
        raise _Damage(f"general.alignment must be from 1 to {MAX_ALIGNMENT}, not {alignment!r:.40}")
    if alignment & (alignment - 1):
        raise _Damage(f"general.alignment must be a power of two, not {alignment}")
    return alignment


def _read_tensor_infos(cursor: _Cursor, count: int, alignment: int) -> list[_TensorInfo]:
    infos: dict[str, _TensorInfo] = {}
    for _ in range(count):
        info = _read_tensor_info(cursor)
        if info.name in infos:
            raise _Damage(f"it has the tensor {_quoted(info.name)} twice")
        if info.offset % alignment:
            raise _Damage(f"tensor {_quoted(info.name)} is not aligned to {alignment} bytes")
        infos[info.name] = info
    return list(infos.values())


def _read_tensor_info(cursor: _Cursor) -> _TensorInfo:
    name = cursor.string("a tensor name", MAX_NAME_BYTES)
    what = f"tensor {_quoted(name)}"
    num_dims = cursor.uint32(what)
    if not 1 <= num_dims <= MAX_DIMS:
        raise _Damage(f"{what} has {num_dims} dimensions; from 1 to {MAX_DIMS} are allowed")
    shape = tuple(cursor.uint64(what) for _ in range(num_dims))[::-1]
    number = cursor.uint32(what)
    offset = cursor.uint64(what)
    ggml_type = GGML_TYPES.get(number)
    if ggml_type is None:
        raise _Damage(f"{what} has type number {number}, which is unknown or unsupported")
    # Python's integers do not overflow: a product that would is merely larger than the file.
    if 0 in shape:
        raise _Damage(f"{what} has an empty dimension")
    if shape[-1] % ggml_type.block_size:
        raise _Damage(
            f"{what} has rows of {shape[-1]} elements,"
            f" not a multiple of {ggml_type.name}'s block of {ggml_type.block_size}"
        )
    rows, row_bytes = prod(shape[:-1]), ggml_type.row_bytes(shape[-1])
    return _TensorInfo(name, shape, ggml_type.name, rows, row_bytes, offset)


def _check_extents(infos: list[_TensorInfo], data_size: int) -> None:
    """Every tensor lies inside the file, and no two share a byte."""
    position, previous = 0, ""
    for info in sorted(infos, key=lambda info: info.offset):
        if info.offset < position:
            raise _Damage(f"tensors {previous} and {_quoted(info.name)} overlap")
        if info.end > data_size:
            name = _quoted(info.name)
            raise _Damage(f"the file ends inside tensor {name}; is the download complete?")
        position, previous = info.end, _quoted(info.name)


def _view(mapped: mmap.mmap, data_start: int, info: _TensorInfo) -> GGUFTensor:
    raw = np.frombuffer(mapped, np.uint8, info.rows * info.row_bytes, data_start + info.offset)
    return GGUFTensor(info.name, info.shape, info.ggml_type, raw.reshape(info.rows, info.row_bytes))
