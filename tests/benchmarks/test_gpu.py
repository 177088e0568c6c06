"""The script for a GPU, tried out on the CPU: every stage runs, and a failure stays its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmarks.gpu
import numpy as np
import pytest
import torch
from benchmarks.gpu import models
from benchmarks.gpu.__main__ import BUDGET, GRACE, STAGES
from benchmarks.gpu.context import Context
from benchmarks.gpu.greedy import FromIntegers, compared
from benchmarks.gpu.others import vllm
from benchmarks.gpu.speeds import on_host
from benchmarks.gpu.wholes import _warmed_up, workload

from pellucid.kernels.reference import ReferenceOps
from pellucid.load.model_config import load_config
from pellucid.load.weights import open_weights
from pellucid.runner import graphs, torch_runner

ROOT = Path(benchmarks.gpu.__file__).parents[2]


def run(folder: Path, *options: str, interpret: bool) -> dict[str, Any]:
    environment = os.environ | {"TRITON_INTERPRET": "1"} if interpret else os.environ
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny"]
    command += ["--out", str(folder), *options]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert "limits: copy" in done.stdout
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_whole_models_run_on_the_reference(tmp_path: Path) -> None:
    report = run(tmp_path, "--only", "machine,invariance,greedy,decode,nano_vllm", interpret=False)
    assert {stage["state"] for stage in report.values() if isinstance(stage, dict)} == {"done"}
    assert report["machine"]["found"]["limits"]["memory"] > 0
    same = report["invariance"]["found"]["reference"]
    assert same["alone = together"]
    assert same["chunked = together"]
    assert same["preempted = together"]
    assert same["preemptions"] > 0
    assert same["values compared"] == 2 * (8 + 10 + 12)
    assert report["decode"]["found"]["bfloat16, torch"]["share_of_copy"] > 0
    assert report["greedy"]["found"]["reference torch.float32"]["ok"]
    assert report["greedy"]["found"]["reference torch.float32"]["tokens"] == 2 * 4
    nano = report["nano_vllm"]["found"]["torch"]
    assert nano["finished"]
    assert nano["output_tokens"] == nano["of"]


@pytest.mark.slow
def test_kernels_are_checked_and_timed_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'pellucid[gpu]'")
    report = run(tmp_path, "--only", "machine,checks,sampling,by_tokens", interpret=True)
    assert {stage["state"] for stage in report.values() if isinstance(stage, dict)} == {"done"}
    checks = report["checks"]["found"]
    errors = {name: found for name, found in checks.items() if "float32" in name}
    assert {name for name, found in errors.items() if "failed" in found} == set()
    del errors["rows alone torch.float32"]  # numpy's products depend on a row's place
    assert all(found["ok"] for found in errors.values())
    assert any("prompt attention" in name for name in errors)
    assert all(found["differ"] == 0 for found in report["sampling"]["found"].values())
    kernels = {line["kernels"] for line in report["by_tokens"]["found"]["rms_norm"]}
    assert kernels == {"triton", "torch", "torch fused"}


def test_what_was_found_before_a_failure_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    context = Context(torch.device("cpu"), True, time.monotonic() + 60, path)
    context.keep("list", [])
    context.keep("list", 1)
    context.attempt("quotient", lambda: 1 // 0)
    context.attempt("sum", lambda: 1 + 1)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["list"] == [1]
    assert found["quotient"]["failed"].startswith("ZeroDivisionError")
    assert found["sum"] == 2


def test_the_workload_is_that_of_the_published_numbers() -> None:
    prompts, answers = workload(151_936)
    assert sum(answers) == 133_966
    assert len(prompts) == 256
    assert max(map(max, prompts)) <= 10_000


def test_it_needs_few_packages() -> None:
    """So that it runs from source on a bare PyTorch machine, where none of the others are."""
    absent = {"fastapi", "gguf", "huggingface_hub", "jinja2", "llguidance", "prometheus_client"}
    absent |= {"psutil", "yaml", "rich", "typer", "uvicorn", "transformers", "matplotlib"}
    absent |= {"pellucid._native"}
    statement = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
    folder = Path(benchmarks.gpu.__file__).parent
    stages = sorted(path.stem for path in folder.glob("*.py") if path.stem[0] != "_")
    statement += f"from benchmarks.gpu import {', '.join(stages)}"
    subprocess.run([sys.executable, "-c", statement], check=True)


def test_tokens_are_compared_wherever_they_lie() -> None:
    """On a GPU the samplers hand out tensors, which compare with an array to a single bool."""
    for values in (torch.tensor([3, 4]), np.array([3, 4])):
        assert (on_host(values) != np.array([3, 5])).sum() == 1


def test_only_choices_between_tokens_apart_count_as_disagreements() -> None:
    expected = torch.tensor([[0.0, 2.0, 1.9], [0.0, 2.0, 1.0], [0.0, 2.0, 1.0]])
    found = torch.tensor([[0.0, 2.0, 2.1], [0.0, 2.0, 2.1], [0.0, 2.0, 1.0]])
    judged = compared(expected, found, margin=0.5)
    assert (judged["disagree"], judged["disagree beyond margin"], judged["ok"]) == (2, 1, False)
    assert compared(expected[::2], found[::2], margin=0.5)["ok"]
    assert not compared(expected, expected * torch.nan, margin=9.0)["ok"]


def test_pictures_are_drawn_later_from_the_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    line = {"rows": 1, "gb_per_s": 2.0, "kernels": "triton", "shape": "64"}
    report = {"by_tokens": {"found": {"rms_norm": [line]}}}
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.gpu", "--draw"]
    subprocess.run([*command, str(tmp_path)], check=True)
    assert (tmp_path / "rms_norm.png").stat().st_size > 1000
    missing = subprocess.run([*command, str(tmp_path / "no")], capture_output=True, text=True)
    assert missing.returncode == 1
    assert "report.json cannot be read" in missing.stderr


def test_vllm_is_reported_absent_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    context = Context(torch.device("cpu"), True, time.monotonic() + 60, tmp_path / "found.json")
    vllm(context)
    assert "ModuleNotFoundError" in context.found["absent"]


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_that_no_step_reads_is_not_counted(tied: bool) -> None:
    config = replace(models.TINY, tie_embeddings=tied)
    cpu = torch.device("cpu")
    runner, _ = models.make_runner(
        *(config, ReferenceOps(), cpu, torch.float32), tokens=64, longest=64, max_num_seqs=2
    )
    inner = 3 * 64 * 96 + 64 * 128 * 2 + 64 * 64 * 2  # of one layer: mlp, q and output, k and v
    norms = 3 * 64 + 2 * 32
    assert models.bytes_read(runner) == 4 * (96 * 64 + inner + norms)


def test_the_warm_up_goes_through_every_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU what is recorded is computed again; so are the bounds beyond the first."""
    recorder = SimpleNamespace(record=lambda function: function() or function)
    monkeypatch.setattr(torch_runner.device_api, "graph_recorder", lambda device: recorder)
    monkeypatch.setattr(graphs, "FIRST_CONTEXT", 64)
    cpu = torch.device("cpu")
    runner, settings = models.make_runner(
        *(models.TINY, ReferenceOps(), cpu, torch.float32),
        tokens=1024,
        longest=128,
        max_num_seqs=10,
        replayed=True,
    )
    warm_up = _warmed_up(models.engine(runner, settings), runner, 10)
    expected = {(rows, context) for rows in (1, 2, 4, 8, 10) for context in (64, 128)}
    assert set(models.captured(runner)) == expected
    assert warm_up["captures"] == len(expected)


def test_the_documented_commands_fit_their_budget_and_leave_nothing_out() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    calls = [line.split(",") for line in re.findall(r"benchmarks\.gpu .*--only (\S+)", text)]
    assert {name for names in calls for name in names} == STAGES.keys()
    for names in calls:
        assert sum(STAGES[name][2] for name in names) <= BUDGET - GRACE


def test_limits_are_measured_where_no_stage_has_done_so(tmp_path: Path) -> None:
    context = Context(torch.device("cpu"), True, time.monotonic() + 60, tmp_path / "found.json")
    limits = context.known_limits()
    assert limits.memory > 0
    assert context.known_limits() is limits
    assert context.found["limits"]["memory"] == limits.memory


@pytest.mark.model
def test_values_from_integers_are_those_of_the_file(smollm2_path: Path) -> None:
    files = models.gguf(smollm2_path)
    weights = open_weights(files, load_config(files))
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
        expected = weights.get(name, torch.float32)
        assert torch.equal(FromIntegers(weights).get(name, torch.float32), expected)
    weights.close()
