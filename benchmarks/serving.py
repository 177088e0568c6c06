"""`pellucid serve` in a process of its own, for benchmarks that speak HTTP to it."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

START_SECONDS = 120
STOP_SECONDS = 40  # beyond the server's own --drain-timeout


@contextmanager
def serving(
    *flags: str, log_lines: list[str] | None = None
) -> Iterator[tuple[psutil.Process, int]]:
    """A server's front end and its port. Raises SystemExit if it does not start.

    `log_lines` gets what the server wrote, once it has ended.
    """
    command = [sys.executable, "-m", "pellucid", "serve", *flags, "--port", "0"]
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:  # a pipe would fill up
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield psutil.Process(process.pid), _port(process, log.name)
        except Exception:
            with open(log.name) as file:
                print("the server's log ends with", *file.readlines()[-40:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if log_lines is not None:
                with open(log.name) as file:
                    log_lines += file


def _port(process: subprocess.Popen[bytes], log: str) -> int:
    """The port, once the server says that it is ready."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with open(log) as file:
            if ready := re.search(r" is ready at http://127\.0\.0\.1:(\d+)", file.read()):
                return int(ready[1])
        time.sleep(0.05)
    with open(log) as file:
        raise SystemExit(f"the server did not start: {file.read()}")
