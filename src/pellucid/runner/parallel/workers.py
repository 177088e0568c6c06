"""Rank 0's workers: started, told what to do, watched, stopped.

A worker ends when either of its connections does: the socket, on which it is told what to do, or
the pipe to its stdin, which the system closes when rank 0 dies. A rank that dies takes all along:
who waits for it in a sum gets an error (gloo) or waits for ever (NCCL), so rank 0's process is
ended if it does not end in time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pellucid.config import EngineConfig
from pellucid.errors import ConfigError, EngineDead, ModelError, PellucidError
from pellucid.runner.parallel.messages import (
    Channel,
    Command,
    Event,
    Failed,
    Loaded,
    Ready,
    Start,
)

GRACE = 1.0  # seconds after a death in which rank 0 may end by itself
TO_STOP = 5.0  # seconds that workers have for it


class Worker:
    """The process of one rank, as rank 0 sees it."""

    def __init__(self, start: Start, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        program = [sys.executable, "-m", "pellucid.runner.parallel.worker"]
        with theirs:
            self.process = subprocess.Popen(
                [*program, str(theirs.fileno()), str(folder)],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for whoever started rank 0
            )
        self.rank = start.rank
        self.channel: Channel[Event] = Channel(ours, Event)
        self.last: Event | None = None
        self.exit_status: int | None = None  # once it is dead
        with contextlib.suppress(OSError):  # if it has died already, its end will be noticed
            self.channel.send(start)

    @property
    def is_lost(self) -> bool:
        return self.exit_status is not None or isinstance(self.last, Failed)

    def epitaph(self) -> str:
        if isinstance(self.last, Failed):
            return f"rank {self.rank} failed: {self.last.message}"
        status = self.exit_status or 0
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return f"rank {self.rank} died ({how})"


class Workers:
    """Ranks 1 and up.

    Args:
        shape: of random weights instead of the configuration's model.
        folder: where the ranks meet. It is removed when a worker ends, as then all do.
    """

    def __init__(self, config: EngineConfig, shape: str | None, folder: Path) -> None:
        self._folder = folder
        self._changed = threading.Condition()
        self._is_stopping = False
        self._is_told = False  # rank 0 knows of a death, and ends by itself
        ranks = range(1, config.runner.tensor_parallel_size)
        self._workers = [Worker(Start(config, rank, shape), folder) for rank in ranks]
        for worker in self._workers:
            threading.Thread(target=self._watch, args=(worker,), daemon=True).start()

    @property
    def has_lost(self) -> bool:
        """Whether a worker failed or died."""
        return any(worker.is_lost for worker in self._workers)

    def wait_until_loaded(self) -> None:
        """Raises what `raise_failure` does."""
        self._wait_until(Loaded)

    def wait_until_ready(self) -> None:
        """Raises what `raise_failure` does."""
        self._wait_until(Ready)

    def tell(self, command: Command) -> None:
        """Raises OSError if a worker is gone."""
        for worker in self._workers:
            worker.channel.send(command)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """If what is done within fails because a worker is gone, raise that instead."""
        try:
            yield
        except (OSError, RuntimeError):  # of a socket, of a collective
            with self._changed:
                if self._changed.wait_for(lambda: self.has_lost, GRACE):
                    # Who died of it may be heard of before who died first.
                    self._changed.wait_for(lambda: all(w.is_lost for w in self._workers), GRACE / 2)
            self.raise_failure()
            raise

    def raise_failure(self) -> None:
        """Say which workers are gone, if any are.

        Raises:
            ModelError: what a worker said of the model.
            ConfigError: what a worker said of a setting.
            EngineDead: a worker died, or failed in another way.
        """
        with self._changed:
            lost = [worker for worker in self._workers if worker.is_lost]
            self._is_told = bool(lost)
        if lost:
            raise _error(lost)

    def hang_up(self) -> None:
        """Let the workers end. From now on their ends are no failures."""
        self._is_stopping = True
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.channel.close()

    def stop(self, patience: float = TO_STOP) -> None:
        """Return when all have ended; whoever has not in `patience` seconds is killed."""
        self.hang_up()
        deadline = time.monotonic() + patience
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            if worker.process.stdin is not None:
                worker.process.stdin.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_until(self, stage: type[Loaded] | type[Ready]) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self.has_lost or all(isinstance(w.last, stage) for w in self._workers)
            )
        self.raise_failure()

    def _watch(self, worker: Worker) -> None:
        """Listen to a worker until it is dead. A thread for each."""
        with contextlib.suppress(EOFError, OSError, msgspec.DecodeError):
            while True:
                self._note(worker, event=worker.channel.receive())
        exit_status = worker.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)  # it may have been killed
        self._note(worker, exit_status=exit_status)
        time.sleep(GRACE)
        if not (self._is_stopping or self._is_told):
            print(f"pellucid: {worker.epitaph()}; the engine ends", file=sys.stderr, flush=True)
            os._exit(1)  # rank 0 may wait for it in a collective, which nothing else would end

    def _note(
        self, worker: Worker, event: Event | None = None, exit_status: int | None = None
    ) -> None:
        with self._changed:
            worker.last = event or worker.last
            worker.exit_status = exit_status
            self._changed.notify_all()


def _error(lost: list[Worker]) -> PellucidError:
    for worker in lost:
        match worker.last:
            case Failed(message, "model"):
                return ModelError(f"rank {worker.rank}: {message}")
            case Failed(message, "config"):
                return ConfigError(f"rank {worker.rank}: {message}")
    # Who died of another's death has last words, too.
    lost = sorted(lost, key=lambda worker: isinstance(worker.last, Failed))
    return EngineDead("; ".join(worker.epitaph() for worker in lost))
