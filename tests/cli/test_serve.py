"""`pellucid serve` as a process, with the fake runner: what it prints is what works."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.helpers import Pellucid


@contextlib.contextmanager
def serving(model: Path, *arguments: str) -> Iterator[tuple[str, str]]:
    """A server's URL, and the curl line that it printed."""
    command = (sys.executable, "-m", "pellucid", "serve", str(model), "--runner", "fake")
    process = subprocess.Popen(
        [*command, "--port", "0", *arguments],
        env={**os.environ, "COLUMNS": "40"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        url, curl = "", ""
        for line in process.stderr:
            if " is ready at " in line:
                url = line.split()[-1]
            if line.startswith("curl") or curl:
                curl += line
            if line.startswith("  -d"):
                break
        assert curl, "it ended before it was ready"
        yield url, curl
    finally:
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=30)
    assert process.returncode in (0, 130), rest


@pytest.fixture(scope="module")
def server(fake_model: Path) -> Iterator[tuple[str, str]]:
    with serving(fake_model, "--served-model-name", "it's mine") as found:
        yield found


def test_prints_where_it_listens(server: tuple[str, str]) -> None:
    url, _ = server
    assert httpx.get(f"{url}/models").json()["data"][0]["id"] == "it's mine"


def test_curl_line_can_be_pasted(server: tuple[str, str]) -> None:
    words = shlex.split(server[1])
    assert words[:2] == ["curl", "-N"]
    body = json.loads(words[words.index("-d") + 1])
    assert body["stream"] is True
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    answer = subprocess.run([*words, "-s"], capture_output=True, text=True, timeout=30)
    assert answer.stdout.startswith("data: {")
    assert answer.stdout.rstrip().endswith("data: [DONE]")


def test_bench_serve_measures_it(
    server: tuple[str, str], pellucid: Pellucid, tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    for endpoint in ("completions", "chat"):
        outcome = pellucid(
            *("bench", "serve", "--base-url", server[0], "--endpoint", endpoint),
            *("--num-prompts", "12", "--max-concurrency", "4", "--input-len", "20"),
            *("--output-len", "10", "--ignore-eos", "--vocab-size", "1000", "--json", str(file)),
        )
        assert outcome.code == 0, outcome.err + outcome.out
        report = json.loads(file.read_text())
        assert (report["completed"], report["failures"]) == (12, {})
        assert report["output_tokens"] == 12 * 10
    assert report["without_usage"] == 0


def test_chat_talks_to_it(
    server: tuple[str, str], pellucid: Pellucid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    outcome = pellucid("chat", "--url", server[0], "--max-tokens", "7", "--ignore-eos")
    assert outcome.code == 0, outcome.err
    assert " + 7 tokens" in outcome.err


def test_missing_model_ends_it_at_once(pellucid: Pellucid, tmp_path: Path) -> None:
    outcome = pellucid("serve", str(tmp_path / "no.gguf"))
    assert outcome.code == 1
    assert "no.gguf" in outcome.err


def test_taken_port_is_bad_usage(
    server: tuple[str, str], pellucid: Pellucid, fake_model: Path
) -> None:
    port = httpx.URL(server[0]).port
    outcome = pellucid("serve", str(fake_model), "--runner", "fake", "--port", str(port))
    assert outcome.code == 2
    assert f"port {port}" in outcome.err
