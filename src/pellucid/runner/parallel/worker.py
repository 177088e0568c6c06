"""A worker process: `python -m pellucid.runner.parallel.worker DESCRIPTOR FOLDER`.

DESCRIPTOR is an inherited socket on which commands come in and events go out (`messages.py`),
FOLDER is where the ranks meet. Stdin says nothing until it ends, and then rank 0 is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pellucid.errors import ConfigError, ModelError
from pellucid.runner.executor import Forward
from pellucid.runner.parallel.collectives import ProcessRanks
from pellucid.runner.parallel.messages import (
    Channel,
    Command,
    Failed,
    Hidden,
    Loaded,
    Logits,
    Ready,
    Remember,
    Start,
    Step,
)
from pellucid.runner.torch_runner import TorchRunner


def main() -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    logging.disable(logging.WARNING)  # rank 0 has the same to say
    connected = socket.socket(fileno=int(sys.argv[1]))
    connected.set_inheritable(False)
    channel: Channel[Command] = Channel(connected, Command)
    status = 1
    try:
        start = channel.receive()
        if not isinstance(start, Start):
            raise ValueError(f"{start} came first")
        follow(channel, start)
        status = 0
    except (EOFError, ConnectionError):
        pass  # rank 0 is gone, and says why
    except BaseException as error:
        with contextlib.suppress(OSError):
            channel.send(_last_words(error))
        if not isinstance(error, (ModelError, ConfigError)):
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    _end(status)


def follow(channel: Channel[Command], start: Start) -> None:
    """Load a shard, then do what rank 0 does, until it hangs up."""
    size = start.config.runner.tensor_parallel_size
    ranks = ProcessRanks(start.rank, size, Path(sys.argv[2]), lambda: channel.send(Loaded()))
    runner = TorchRunner(start.config, shape=start.shape, ranks=ranks)
    channel.send(Ready())
    obey(iter(lambda: _next(channel), None), runner, ranks)
    ranks.leave()


def obey(commands: Iterator[Command | None], runner: TorchRunner, ranks: ProcessRanks) -> None:
    """Do what rank 0's executor was asked to."""
    executor = runner.executor
    forward: Forward | None = None
    for command in commands:
        match command:
            case Step():
                forward = executor.launch(*command.unpacked())
            case Logits() if forward is not None:
                forward.logits(command.begin, command.end)
            case Hidden():
                executor.hidden(*command.step.unpacked())
            case Remember():
                rows = np.frombuffer(command.rows, np.int64)
                tokens = torch.empty(len(rows), dtype=torch.int64, device=runner.device)
                executor.remember(rows, ranks.told(tokens))
            case _:
                raise ValueError(f"{command} makes no sense now")


def _next(channel: Channel[Command]) -> Command | None:
    try:
        return channel.receive()
    except EOFError:
        return None


def _last_words(error: BaseException) -> Failed:
    kind: Literal["model", "config", "crash"] = "crash"
    if isinstance(error, ModelError):
        kind = "model"
    elif isinstance(error, ConfigError):
        kind = "config"
    return Failed(str(error) if kind != "crash" else f"{type(error).__name__}: {error}", kind)


def _exit_with_parent() -> None:
    sys.stdin.buffer.read()
    _end(0)


def _end(status: int) -> None:
    shutil.rmtree(sys.argv[2], ignore_errors=True)  # rank 0 may have been killed
    os._exit(status)  # compute threads may still hold locks that a tidy exit would wait for


if __name__ == "__main__":
    main()
