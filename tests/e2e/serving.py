"""`pellucid serve` as a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

NAME = "smollm2"


def serving(
    model: Path, *flags: str
) -> contextlib.AbstractContextManager[tuple[str, subprocess.Popen[str]]]:
    """A server of one model; see `started`."""
    return started(str(model), "--served-model-name", NAME, *flags)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server on a free port; yields the curl line that it prints when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pellucid", "serve", "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
    )
    assert process.stderr is not None
    try:
        printed = _printed_curl(process)
        # It logs every request: somebody has to read, or it waits for that.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield printed, process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _printed_curl(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said, deadline = "", time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if select.select([process.stderr], [], [], 0.2)[0]:
            said += os.read(process.stderr.fileno(), 65536).decode()
        if found := re.search(r"curl -N .*?}'\n", said, re.DOTALL):
            return found.group()
    raise AssertionError(f"the server did not become ready: {said}")


def base_url(curl: str) -> str:
    return re.findall(r"http://[\w.:]+", curl)[0]


def metrics(url: str) -> dict[str, float]:
    """One look at /metrics: samples by name, summed over their labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def is_idle(url: str) -> bool:
    told = metrics(url)
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    return not any(told[f"vllm:{name}"] for name in names)
