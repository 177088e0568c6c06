"""An engine in a process of its own, spoken to in lines of JSON (see `drivers/protocol.py`)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import psutil

from benchmarks.peers.environments import LOGS

DRIVERS = Path(__file__).parent / "drivers"


class EngineError(Exception):
    """The engine answered with an error, or its process ended."""


class Speaker(Protocol):
    """What a measurement needs of an engine."""

    def call(self, op: str, **arguments: Any) -> dict[str, Any]: ...

    def cpu_seconds(self) -> float: ...


class EngineProcess:
    """One of the drivers, running in `python`'s environment.

    What it prints goes to a log file named after it. `call` raises EngineError.
    """

    def __init__(
        self, name: str, python: Path, driver: str, environ: Mapping[str, str] | None = None
    ) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{name}.log"
        with self.log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [python, DRIVERS / driver],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **(environ or {})},
            )

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"op": op, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineError(f"its process ended: {_last_line(self.log)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer

    def cpu_seconds(self) -> float:
        """Processor time that the process and its children have used."""
        try:
            me = psutil.Process(self._process.pid)
            times = [each.cpu_times() for each in (me, *me.children(recursive=True))]
        except psutil.NoSuchProcess:
            return 0.0
        return sum(each.user + each.system for each in times)

    def close(self, patience: float = 20.0) -> None:
        """Let the process end, or kill it after `patience` seconds."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close() if error is None else self.close(patience=0.1)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")
