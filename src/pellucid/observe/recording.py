"""A run's events in a file, to be looked at or replayed later.

    8 bytes    b"PELLUCID"
    frame*     uint32, little-endian: length of the body; body: msgpack
               the first body is a `Header`, every other one a `engine.events.StepEvents`

A file that was cut off, because the server was killed, is good up to its last whole frame. There is
no text of prompts or answers in it, and token ids only if they were asked for.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from pellucid import __version__
from pellucid.engine import events
from pellucid.errors import ConfigError
from pellucid.messages import EngineInfo

MAGIC = b"PELLUCID"
VERSION = 1
MAX_FRAME_BYTES = 1 << 28  # larger ones are no frames but damage

_LENGTH = struct.Struct("<I")
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError)


class Header(msgspec.Struct, array_like=True):
    """What the events are about. `unix_time` and `monotonic` name the same moment."""

    version: int
    pellucid: str  # version of the package
    unix_time: float
    monotonic: float
    model: str
    num_kv_blocks: int
    block_size: int
    tokens: bool  # shares carry token ids
    kernels: str = ""
    dtype: str = ""


class Recording:
    """Writes a recording; a sink for `EventHub.subscribe`.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: str, info: EngineInfo, *, tokens: bool = False) -> None:
        self._file = open_for_writing(path, "record")
        header = Header(
            VERSION,
            __version__,
            time.time(),
            time.monotonic(),
            info.model,
            info.num_kv_blocks,
            info.block_size,
            tokens,
            info.kernels,
            info.dtype,
        )
        self._file.write(MAGIC)
        self(msgspec.msgpack.encode(header))

    def __call__(self, frame: bytes) -> None:
        self._file.write(_LENGTH.pack(len(frame)))
        self._file.write(frame)

    def close(self) -> None:
        self._file.close()


class RecordingReader:
    """The steps of a recording, one after the other or by their place in the file.

    Iterating reads them anew from the first on, each with its offset in bytes. Afterwards `num_cut`
    says how many bytes at the end are no whole frame; the steps before them are good.

    Raises:
        ConfigError: the file cannot be read, is no recording, or one of another version; later, it
            is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._file = Path(path).open("rb")  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        self.path = path
        self.num_cut = 0
        try:
            self.header = self._read_header()
            self._begin = self._file.tell()
        except BaseException:
            self._file.close()
            raise

    def __iter__(self) -> Iterator[tuple[int, events.StepEvents]]:
        offset, size = self._begin, os.fstat(self._file.fileno()).st_size
        while size - offset >= _LENGTH.size:
            length = self._length_at(offset)
            if offset + _LENGTH.size + length > size:
                break
            yield offset, self._decode(offset, length)
            offset += _LENGTH.size + length
        self.num_cut = size - offset

    def step_at(self, offset: int) -> events.StepEvents:
        return self._decode(offset, self._length_at(offset))

    def close(self) -> None:
        self._file.close()

    def _read_header(self) -> Header:
        foreign = ConfigError(f"{self.path} is no recording of events (pellucid serve --record)")
        try:
            if self._file.read(len(MAGIC)) != MAGIC:
                raise foreign
            length = self._length_at(len(MAGIC))
            self._file.seek(len(MAGIC) + _LENGTH.size)
            first = self._file.read(length)
            if len(first) < length:
                raise ConfigError(f"{self.path} is cut off within its header: it has no steps")
            # The version comes first, so that a later layout can be told from damage.
            version = msgspec.msgpack.decode(first)[0]
            if version != VERSION:
                raise ConfigError(
                    f"{self.path} has version {version}; this pellucid reads {VERSION}"
                )
            return msgspec.msgpack.decode(first, type=Header)
        except OSError as error:  # a folder
            raise ConfigError(f"cannot read {self.path}: {error.strerror}") from None
        except (struct.error, *_UNDECODABLE, TypeError, LookupError):
            raise foreign from None

    def _length_at(self, offset: int) -> int:
        self._file.seek(offset)
        length: int = _LENGTH.unpack(self._file.read(_LENGTH.size))[0]
        if length > MAX_FRAME_BYTES:
            raise ConfigError(f"{self.path} is damaged at byte {offset}: a frame of {length} bytes")
        return length

    def _decode(self, offset: int, length: int) -> events.StepEvents:
        self._file.seek(offset + _LENGTH.size)
        try:
            return events.decode(self._file.read(length))
        except _UNDECODABLE as error:
            raise ConfigError(f"{self.path} is damaged at byte {offset}: {error}") from None


def read_recording(path: str | Path) -> tuple[Header, Iterator[events.StepEvents]]:
    """The header and the steps of a recording, read as they are asked for.

    Raises:
        ConfigError: as `RecordingReader`; where a step is damaged, when it is reached.
    """
    reader = RecordingReader(path)
    return reader.header, _steps(reader)


def open_for_writing(path: str, setting: str) -> BinaryIO:
    """Raises ConfigError naming the setting."""
    try:
        return Path(path).open("wb")
    except OSError as error:
        problem = f"{setting}: cannot write {path}: {error.strerror}"
        raise ConfigError(problem, param=setting) from None


def _steps(reader: RecordingReader) -> Iterator[events.StepEvents]:
    try:
        for _, step in reader:
            yield step
    finally:
        reader.close()
