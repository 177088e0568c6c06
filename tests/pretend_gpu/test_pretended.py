"""The code for GPUs on a GPU that is pretended: `tensors.py` says how strict that is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler"),
]


def run(*arguments: str) -> None:
    """Python with these arguments, with a GPU."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'pellucid[gpu]'")
    folders = [f"{ROOT}/tests/pretend_gpu/site", str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(folders),
        "PELLUCID_TEST_DEVICE": "cuda",
        "PRETENDED_GPUS": "2",
    }
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]


def test_steps_go_to_it_and_back() -> None:
    run("-m", "pytest", "-q", "tests/pretend_gpu/on_gpu.py", "tests/runner/test_sampling_ahead.py")


def test_the_script_for_a_gpu_runs_on_it(tmp_path: Path) -> None:
    options = ["--device", "cuda", "--tiny", "--out", str(tmp_path)]
    run("-m", "benchmarks.gpu", *options, "--only", "machine,greedy,decode")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["machine"]["found"]["device"]["multiprocessors"] == 132
    outcomes = report["greedy"]["found"] | report["decode"]["found"]
    assert [name for name, found in outcomes.items() if "failed" in found] == []
    assert {"triton torch.float32", "int4, triton, replayed"} <= outcomes.keys()
