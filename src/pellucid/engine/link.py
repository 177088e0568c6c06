"""The socket between the front end and the engine process, and the frames that travel on it.

One unnamed pair of Unix sockets carries both directions: nothing listens, nobody else can connect,
and the end of one process is the end of the other's stream. A frame is its length as four
little-endian bytes, then a msgpack struct of `messages.py`; an unknown one is refused.

Plain sockets and not a messaging library, since such a library moves every message through a thread
of its own in each process: four wake-ups per step, on cores that the compute threads want.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from typing import Self

import msgspec

from pellucid.messages import Command, Event

HEADER_BYTES = 4
READ_BYTES = 1 << 16
FRONT_END_BUFFER = 1 << 20  # bytes read ahead before the engine is made to wait

_encode = msgspec.msgpack.Encoder().encode


def frame(message: Command | Event) -> bytes:
    payload = _encode(message)
    return len(payload).to_bytes(HEADER_BYTES, "little") + payload


class EngineEnd:
    """What the engine process holds. Blocks; the engine has nothing else to do meanwhile."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)  # a child of ours would keep the connection open
        self._decode = msgspec.msgpack.Decoder(Command).decode
        self._received = bytearray()

    def receive(self, *, patience: float | None) -> list[Command]:
        """All commands that have arrived; waits `patience` seconds for one, for ever if None.

        Raises ConnectionError if the front end is gone.
        """
        commands: list[Command] = []
        deadline = None if patience is None else time.monotonic() + patience
        while True:
            if not commands and patience != 0.0:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                select.select([self._socket], [], [], left)
            try:
                data = self._socket.recv(READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return commands
            if not data:
                raise ConnectionResetError("the front end is gone")
            self._received += data
            commands += map(self._decode, self._complete_frames())

    def send(self, event: Event) -> None:
        self._socket.sendall(frame(event))

    def _complete_frames(self) -> list[bytes]:
        frames = []
        begin = 0
        while (body := begin + HEADER_BYTES) <= len(self._received):
            end = body + int.from_bytes(self._received[begin:body], "little")
            if end > len(self._received):
                break
            frames.append(bytes(self._received[body:end]))
            begin = end
        del self._received[:begin]
        return frames


class FrontEnd:
    """What the front end holds, on its event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decode = msgspec.msgpack.Decoder(Event).decode

    @classmethod
    async def open(cls, connected: socket.socket) -> Self:
        """Take over one end of a pair."""
        return cls(*await asyncio.open_unix_connection(sock=connected, limit=FRONT_END_BUFFER))

    def send(self, command: Command) -> None:
        """Hand over without waiting: admission control bounds what may pile up."""
        self._writer.write(frame(command))

    async def receive(self) -> Event:
        """The next event. Raises EOFError or ConnectionError when the engine is gone."""
        header = await self._reader.readexactly(HEADER_BYTES)
        payload = await self._reader.readexactly(int.from_bytes(header, "little"))
        event: Event = self._decode(payload)
        return event

    def close(self) -> None:
        self._writer.close()
