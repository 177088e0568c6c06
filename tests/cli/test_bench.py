from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pellucid.bench.settings import KernelSettings
from pellucid.config import ModelSettings, RunnerSettings
from pellucid.kernels import machine_limits, measure, native
from tests.bench.fake_server import Behaviour, fake_server
from tests.cli.helpers import Pellucid
from tests.tiny_models import make_hf
from tests.triton_interpreter import interpreting


def test_throughput_writes_what_was_measured_where(
    pellucid: Pellucid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "report.json"
    monkeypatch.setattr("sys.argv", ["/somewhere/pellucid", "bench", "two words"])
    outcome = pellucid(
        *("bench", "throughput", "--runner", "fake", "--num-prompts", "4", "--batch-size", "2"),
        *("--input-len", "32", "--output-len", "4", "--json", str(file)),
    )
    assert outcome.code == 0, outcome.err
    report = json.loads(file.read_text())
    assert report["prefill_tokens_per_s"] > 0
    assert report["decode_tokens_per_s"] > 0
    assert report["workload"]["input_len"] == 32
    assert report["engine"]["architecture"] == "fake"
    assert report["settings"]["runner"]["runner"] == "fake"
    assert report["machine"]["cpu"]
    assert report["versions"]["python"]
    assert report["command"] == "pellucid bench 'two words'"
    assert "prefill" in outcome.out


def test_throughput_definition_is_in_the_help(pellucid: Pellucid) -> None:
    help_text = " ".join(pellucid("bench", "throughput", "--help").out.split())
    assert "Prefill rate: prompt tokens over the seconds of steps" in help_text


def test_a_gpu_that_is_not_there_is_said_so(pellucid: Pellucid) -> None:
    outcome = pellucid("bench", "kernels", "--device", "cuda:7")
    assert outcome.code != 0
    assert "device 'cuda:7' is not here" in outcome.err
    outcome = pellucid("bench", "kernels", "--write-thresholds")
    assert outcome.code != 0
    assert "need a GPU" in outcome.err


def test_the_kernels_of_a_gpu_are_shown_written_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In Triton's interpreter, at few sizes."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'pellucid[gpu]'")
    make_hf("qwen3", tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with interpreting():
        from pellucid.cli import gpu_kernels
        from pellucid.kernels import gpu_measure
        from pellucid.kernels.triton import calibrate
        from pellucid.kernels.triton.thresholds import Thresholds

        limits = gpu_measure.GpuLimits(memory=1e9, compute=1e9)
        monkeypatch.setattr(gpu_measure, "measure_limits", lambda watch, dtype: limits)
        monkeypatch.setattr(gpu_kernels, "NORM_ROWS", (1, 2))
        monkeypatch.setattr(calibrate, "calibrate", lambda *_, **__: Thresholds(rope=32))
        report = gpu_kernels.bench_gpu(
            ModelSettings(model=str(tmp_path / "model")),
            RunnerSettings(device="cpu"),
            KernelSettings(rows=[1], context=20, write_thresholds=True),
            tmp_path / "norms.png",
        )
        assert Thresholds.current() == Thresholds(rope=32)
    shown = capsys.readouterr().out
    assert "gate_up" in shown
    assert "torch fused" in shown
    assert "limits: copy 1 GB/s" in shown
    assert {m.kernels for m in report["norm_by_tokens"]} == {"triton", "torch", "torch fused"}
    assert (tmp_path / "norms.png").stat().st_size > 1000
    assert "rope=32" in report["thresholds"]


@pytest.mark.skipif(native.obstacle(torch.device("cpu")) is not None, reason="not built")
def test_kernels_are_measured_on_the_models_shapes(
    pellucid: Pellucid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(machine_limits, "SECONDS", 0.01)
    make_hf("qwen3", tmp_path / "model")
    file = tmp_path / "report.json"
    outcome = pellucid(
        *("bench", "kernels", str(tmp_path / "model"), "--rows", "2", "--context", "20"),
        *("--threads", "2", "--json", str(file)),
    )
    assert outcome.code == 0, outcome.err
    assert "gate_up" in outcome.out
    assert "limits:" in outcome.out
    report = json.loads(file.read_text())
    assert report["limits"]["memory"] > 0
    shapes = {(m["op"], m["shape"]) for m in report["kernels"]}
    assert ("gate_up", "192x64") in shapes
    assert report["settings"]["context"] == 20


def test_serve_shows_and_writes_a_report(pellucid: Pellucid, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    with fake_server(Behaviour(faults={2: "429"})) as server:
        outcome = pellucid(
            *("bench", "serve", "--base-url", server.url, "--num-prompts", "5"),
            *("--output-len", "4", "--input-len", "4", "--json", str(file)),
            *("--goodput", "ttft:9999", "--goodput", "tpot:9999"),
        )
    assert outcome.code == 0, outcome.err
    assert "4 completed, 1 failed" in outcome.out
    assert "1 failed: HTTP 429: the queue is full" in outcome.out
    report = json.loads(file.read_text())
    assert report["goodput"]["requests"] == 4
    assert report["settings"]["request_rate"] == "inf"
    assert report["ttft_ms"]["count"] == 4


def test_serve_with_nothing_completed_is_exit_code_1(pellucid: Pellucid) -> None:
    with fake_server(Behaviour(faults=dict.fromkeys(range(3), "429"))) as server:
        outcome = pellucid(
            *("bench", "serve", "--base-url", server.url, "--num-prompts", "3", "--warmup", "0")
        )
    assert outcome.code == 1
    assert "0 completed, 3 failed" in outcome.out


def test_api_key_is_not_written(pellucid: Pellucid, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    with fake_server(Behaviour()) as server:
        pellucid(
            *("bench", "serve", "--base-url", server.url, "--num-prompts", "1"),
            *("--output-len", "2", "--json", str(file), "--api-key", "sk-secret"),
        )
    assert "sk-secret" not in file.read_text()


def test_settings_of_a_benchmark_are_not_taken_from_the_environment(
    pellucid: Pellucid, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PELLUCID_MODEL names a model of ours, not one of the server that is measured.
    monkeypatch.setenv("PELLUCID_MODEL", "/models/mine.gguf")
    behaviour = Behaviour()
    with fake_server(behaviour):
        pellucid(*("bench", "serve", "--base-url", behaviour.url, "--num-prompts", "1"))
    assert {body["model"] for body in behaviour.bodies} == {"tiny"}


def test_unwritable_report_is_told(pellucid: Pellucid, tmp_path: Path) -> None:
    outcome = pellucid(
        *("bench", "throughput", "--runner", "fake", "--num-prompts", "1", "--output-len", "2"),
        *("--json", str(tmp_path / "no" / "report.json")),
    )
    assert outcome.code == 2
    assert "--json: cannot write" in outcome.err


@pytest.mark.model
def test_throughput_of_the_real_model(
    pellucid: Pellucid, smollm2_path: Path, tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    outcome = pellucid(
        *("bench", "throughput", str(smollm2_path), "--num-prompts", "2", "--batch-size", "2"),
        *("--input-len", "16", "--output-len", "3", "--json", str(file)),
        *("--num-kv-blocks", "64", "--max-num-seqs", "2"),
    )
    assert outcome.code == 0, outcome.err
    report = json.loads(file.read_text())
    assert (report["prompt_tokens"], report["output_tokens"]) == (32, 6)
    assert report["weight_gb_per_s"] > 0


def test_throughput_of_random_weights_needs_no_model(pellucid: Pellucid, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    outcome = pellucid(
        *("bench", "throughput", "--random-weights", "--shape", "tiny", "--device", "cpu"),
        *("--num-prompts", "2", "--input-len", "16", "--output-len", "3", "--json", str(file)),
        *("--quantization", "int8", "--max-model-len", "64", "--cache-dir", str(tmp_path / "none")),
    )
    assert outcome.code == 0, outcome.err
    report = json.loads(file.read_text())
    assert report["output_tokens"] == 6
    assert report["engine"]["model"] == "tiny, random weights"
    assert report["random"] == {"random_weights": True, "shape": "tiny"}


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--shape", "tiny"], "needs --random-weights"),
        (["--random-weights", "--shape", "gpt9"], "none of tiny"),
        (["--random-weights", "--runner", "fake"], "--random-weights is for --runner torch"),
    ],
)
def test_random_weights_that_cannot_be_are_told(
    pellucid: Pellucid, flags: list[str], complaint: str
) -> None:
    outcome = pellucid("bench", "throughput", *flags)
    assert outcome.code != 0
    assert complaint in " ".join(outcome.err.split())
