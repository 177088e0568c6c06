"""A run's events in a file, to be looked at or replayed later.

    8 bytes    b"PELLUCID"
    frame*     uint32, little-endian: length of the body; body: msgpack
               the first body is a `Header`, every other one a `engine.events.StepEvents`

A file that was cut off, because the server was killed, is good up to its last whole frame. There is
no text of prompts or answers in it, and token ids only if they were asked for.
"""

from __future__ import annotations

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
        )
        self._file.write(MAGIC)
        self(msgspec.msgpack.encode(header))

    def __call__(self, frame: bytes) -> None:
        self._file.write(_LENGTH.pack(len(frame)))
        self._file.write(frame)

    def close(self) -> None:
        self._file.close()


def read_recording(path: str | Path) -> tuple[Header, Iterator[events.StepEvents]]:
    """The header and the steps of a recording, read as they are asked for.

    Raises:
        ConfigError: the file cannot be read, is no recording, or one of another version.
        msgspec.DecodeError: a frame is damaged; raised when it is reached.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed with the iterator
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    try:
        if file.read(len(MAGIC)) != MAGIC or (first := _frame(file)) is None:
            raise ConfigError(f"{path} is no recording of events")
        # The version comes first, so that a later layout can be told from damage.
        version = msgspec.msgpack.decode(first)[0]
        if version != VERSION:
            raise ConfigError(f"{path} has version {version}; this pellucid reads {VERSION}")
        header = msgspec.msgpack.decode(first, type=Header)
    except BaseException:
        file.close()
        raise
    return header, _steps(file)


def open_for_writing(path: str, setting: str) -> BinaryIO:
    """Raises ConfigError naming the setting."""
    try:
        return Path(path).open("wb")
    except OSError as error:
        problem = f"{setting}: cannot write {path}: {error.strerror}"
        raise ConfigError(problem, param=setting) from None


def _steps(file: BinaryIO) -> Iterator[events.StepEvents]:
    with file:
        while (frame := _frame(file)) is not None:
            yield events.decode(frame)


def _frame(file: BinaryIO) -> bytes | None:
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    if size > MAX_FRAME_BYTES:
        raise ConfigError(f"{file.name} is damaged: a frame of {size} bytes")
    body = file.read(size)
    return body if len(body) == size else None
