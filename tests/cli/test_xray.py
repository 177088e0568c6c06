"""`pellucid xray`: what it refuses, and what it serves."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from pellucid.observe.recording import Recording
from tests.cli.helpers import Pellucid
from tests.observe.runs import CROWDED, crowded, info, run
from tests.test_layering import loaded_by


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("xray") / "run.rec"
    sink = Recording(str(path), info())
    run(crowded(), sink, detail=True, **CROWDED)
    sink.close()
    return path


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot read"),
        (b"", "is no recording"),
        (b"GGUF" * 20, "is no recording"),
        (b"PELLUCID\xff\xff\xff\xff", "damaged at byte 8"),
        (b"PELLUCID\x20\x00\x00\x00\x98\x01", "cut off within its header"),
        (b"PELLUCID\x02\x00\x00\x00\x91\x09", "has version 9"),
        (b"PELLUCID\x02\x00\x00\x00\x91\x01", "is no recording"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    pellucid: Pellucid, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "run.rec"
    if content is not None:
        path.write_bytes(content)
    outcome = pellucid("xray", str(path), "--no-open")
    assert outcome.code == 2
    assert f"{path}" in outcome.err
    assert problem in outcome.err
    assert "Traceback" not in outcome.err


def test_a_folder_is_no_file(pellucid: Pellucid, tmp_path: Path) -> None:
    outcome = pellucid("xray", str(tmp_path), "--no-open")
    assert (outcome.code, "cannot read" in outcome.err) == (2, True)


def test_damage_in_the_midst_is_found_at_the_start(
    pellucid: Pellucid, recording: Path, tmp_path: Path
) -> None:
    path, content = tmp_path / "run.rec", bytearray(recording.read_bytes())
    content[len(content) // 2 :] = b"\x00" * 999
    path.write_bytes(content)
    outcome = pellucid("xray", str(path), "--no-open")
    assert outcome.code == 2
    assert "is damaged at byte" in outcome.err


def test_it_serves_the_page_and_the_file_and_says_that_it_was_cut(
    recording: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.rec"
    path.write_bytes(recording.read_bytes()[:-3])
    command = (sys.executable, "-m", "pellucid", "xray", str(path), "--no-open")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "Look at it" in line:
            break
    try:
        assert "cut off" in said[0]
        url = said[-1].split()[-1].rstrip("/")
        assert url.startswith("http://127.0.0.1:")
        with httpx.Client(base_url=url) as http:
            page = http.get("/", headers={"Accept": "text/html"})
            assert 'data-source="recording"' in page.text
            assert "default-src 'none'" in page.headers["content-security-policy"]
            told = http.get("/xray/recording").json()
            assert told["num_cut"] > 0
            assert http.get("/xray/steps?chunk=0").json()["first"] == 0
            assert json.loads(http.get("/xray/export").text)
            assert http.get("/v1/requests/a/timeline").json()["answers"][0]["id"] == "a"
            for wrong in ("/xray/steps?chunk=9", "/xray/steps?chunk=x", "/xray/steps"):
                refused = http.get(wrong)
                assert (refused.status_code, refused.json()["error"]["param"]) == (400, "chunk")
            assert http.get("/v1/requests/x%2Fy/timeline").status_code == 404
            assert http.get("/v1/models").json()["error"]["code"] == "unknown_route"
            assert http.get("/xray/recording", headers={"Host": "evil.test"}).status_code == 400
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_taken_port_is_bad_usage(pellucid: Pellucid, recording: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = pellucid("xray", str(recording), "--port", str(port), "--no-open")
    assert outcome.code == 2
    assert f"port {port}" in outcome.err


def test_it_needs_no_torch() -> None:
    statement = "import pellucid.server.replay, pellucid.cli.xray"
    assert loaded_by(statement, {"torch", "transformers"}) == set()
