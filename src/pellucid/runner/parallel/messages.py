"""What rank 0 and the workers tell each other, over a pair of Unix sockets for each worker.

Frames as in `engine/link.py`: a length, then msgpack; nothing is pickled and nobody listens.
"""

from __future__ import annotations

import socket
from typing import Any, Generic, Literal, TypeVar

import msgspec
import numpy as np

from pellucid.config import EngineConfig
from pellucid.runner.batch import Ints, StepRows

HEADER_BYTES = 4


class _Message(msgspec.Struct, array_like=True):
    """Positional on the wire."""


# ---- rank 0 -> worker


class Start(_Message, tag="start"):
    """The first message: what to load."""

    config: EngineConfig
    rank: int
    shape: str | None  # of random weights; see `TorchRunner`


class Step(_Message, tag="step"):
    """Compute a step, and keep the hidden states of the wanted rows for `Logits`."""

    rows: bytes
    query_start: bytes
    seq_lens: bytes
    token_ids: bytes
    positions: bytes
    slot_mapping: bytes
    widest: int  # of the block tables, which workers keep themselves
    new_blocks: list[tuple[int, int, list[int]]]
    wanted: bytes

    @classmethod
    def of(cls, step: StepRows, wanted: Ints) -> Step:
        return cls(
            step.rows.tobytes(),
            step.query_start.tobytes(),
            step.seq_lens.tobytes(),
            step.token_ids.tobytes(),
            step.positions.tobytes(),
            step.slot_mapping.tobytes(),
            step.block_tables.shape[1],
            step.new_blocks,
            wanted.tobytes(),
        )

    def unpacked(self) -> tuple[StepRows, Ints]:
        """The step, without its block tables: a device has them from `new_blocks`; and `wanted`."""
        rows = np.frombuffer(self.rows, np.int64)
        step = StepRows(
            rows=rows,
            query_start=np.frombuffer(self.query_start, np.int32),
            seq_lens=np.frombuffer(self.seq_lens, np.int32),
            token_ids=np.frombuffer(self.token_ids, np.int64),
            positions=np.frombuffer(self.positions, np.int64),
            slot_mapping=np.frombuffer(self.slot_mapping, np.int64),
            block_tables=np.broadcast_to(np.int32(0), (len(rows), self.widest)),
            new_blocks=self.new_blocks,
        )
        return step, np.frombuffer(self.wanted, np.int64)


class Hidden(_Message, tag="hidden"):
    """Compute a step whose logits nobody will want."""

    step: Step


class Logits(_Message, tag="logits"):
    """Of the last step's wanted rows, from `begin` to before `end`."""

    begin: int
    end: int


class Remember(_Message, tag="remember"):
    """Rank 0 drew a token for each of the rows, and sends them from device to device."""

    rows: bytes


Command = Start | Step | Hidden | Logits | Remember


# ---- worker -> rank 0


class Loaded(_Message, tag="loaded"):
    """The weights are there, and the worker goes to meet the others."""


class Ready(_Message, tag="ready"):
    """The memory is taken; the worker waits for commands."""


class Failed(_Message, tag="failed"):
    """The worker's last words."""

    message: str
    kind: Literal["model", "config", "crash"]


Event = Loaded | Ready | Failed

Received = TypeVar("Received")


class Channel(Generic[Received]):
    """One end of the pair. Blocks; both sides have nothing else to do meanwhile.

    Args:
        kind: what is received.
    """

    def __init__(self, connected: socket.socket, kind: Any) -> None:
        self._socket = connected
        self._file = connected.makefile("rb")
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(kind).decode

    def send(self, message: Command | Event) -> None:
        """Raises OSError if the other is gone."""
        payload = self._encode(message)
        self._socket.sendall(len(payload).to_bytes(HEADER_BYTES, "little") + payload)

    def receive(self) -> Received:
        """Raises EOFError or OSError if the other is gone."""
        header = self._file.read(HEADER_BYTES)
        payload = self._file.read(int.from_bytes(header, "little"))
        if not payload:
            raise EOFError
        message: Received = self._decode(payload)
        return message

    def close(self) -> None:
        """The other side notices, even while a thread of this one waits in `receive`."""
        self._socket.shutdown(socket.SHUT_RDWR)
