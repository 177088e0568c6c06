"""The engine process: `python -m pellucid.engine.process DIRECTORY`, started by `ProcessClient`.

    stdin      the configuration, one JSON line; then nothing until its end, which means "stop"
    commands   ipc socket in DIRECTORY, a private folder: front end -> engine
    events     ipc socket in DIRECTORY: engine -> front end

No listening port, no pickle: messages are msgpack structs of `messages.py`. When the front end
dies, the kernel closes the pipe to our stdin and the process ends with it.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import traceback
from typing import Literal

import msgspec
import zmq

from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.engine.grammars import GRAMMAR_POLL
from pellucid.errors import ConfigError, ModelError
from pellucid.messages import Command, EngineFailed, Event

COMMANDS = "commands"
EVENTS = "events"


class Link:
    """The engine's end of the two sockets."""

    def __init__(self, directory: str) -> None:
        self._context = zmq.Context()
        self._commands = self._context.socket(zmq.PULL)
        self._commands.connect(f"ipc://{directory}/{COMMANDS}")
        self._events = self._context.socket(zmq.PUSH)
        self._events.setsockopt(zmq.LINGER, 1000)  # last words get a second to be heard
        self._events.connect(f"ipc://{directory}/{EVENTS}")
        self._decoder = msgspec.msgpack.Decoder(Command)
        self._encoder = msgspec.msgpack.Encoder()

    def receive(self, *, patience: float | None) -> list[Command]:
        """All commands that have arrived; waits `patience` seconds for one, for ever if None."""
        commands: list[Command] = []
        if patience != 0.0:
            self._commands.poll(None if patience is None else int(1000 * patience))
        while True:
            try:
                commands.append(self._decoder.decode(self._commands.recv(zmq.NOBLOCK)))
            except zmq.Again:
                return commands

    def send(self, event: Event) -> None:
        self._events.send(self._encoder.encode(event))

    def close(self) -> None:
        self._commands.close(linger=0)
        self._events.close()
        self._context.term()


def run_loop(core: EngineCore, link: Link) -> None:
    """Step while there is work; block on the socket while there is none."""
    while True:
        patience = 0.0 if core.has_work else GRAMMAR_POLL if core.is_compiling else None
        for command in link.receive(patience=patience):
            core.take(command)
        if core.has_work:
            link.send(core.step())


def main() -> None:
    link = Link(sys.argv[1])
    try:
        config = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineConfig)
        threading.Thread(target=_exit_with_parent, daemon=True).start()
        from pellucid.runner.factory import create_runner

        core = EngineCore(create_runner(config), config.cache, config.scheduler)
        gc.collect()
        gc.freeze()  # what lives until the end need not be visited by every collection
        link.send(core.info)
        run_loop(core, link)
    except BaseException as error:
        link.send(_last_words(error))
        link.close()
        if not isinstance(error, (ModelError, ConfigError)):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # compute threads may still hold locks that a tidy exit would wait for


def _last_words(error: BaseException) -> EngineFailed:
    kind: Literal["model", "config", "crash"] = "crash"
    if isinstance(error, ModelError):
        kind = "model"
    elif isinstance(error, ConfigError):
        kind = "config"
    text = str(error) if kind != "crash" else f"{type(error).__name__}: {error}"
    return EngineFailed(message=text, kind=kind)


def _exit_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
