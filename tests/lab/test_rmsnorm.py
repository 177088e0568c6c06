"""RMSNorm's bench: what is timed is a norm, and the words follow the times."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from pellucid.kernels import measure, native
from tests.lab.test_experiments import LAB, check, module

HAS_NATIVE = native.obstacle(torch.device("cpu")) is None


@pytest.fixture(scope="module")
def rmsnorm() -> ModuleType:
    return module("rmsnorm")


def test_rmsnorm(rmsnorm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(rmsnorm, "SECONDS", 0.0)
    findings = rmsnorm.run(rmsnorm.Settings(tokens=[1, 8], large=256, repeats=2), LAB)
    check(findings)
    assert [table.title.split(":")[0] for table in findings.tables] == [
        *("Rows of 128", "Rows of 256", "Kernels")
    ]
    there = dict(findings.tables[-1].rows)
    assert (there["native"] == "measured") == HAS_NATIVE == ("native" in findings.raw["128"])
    if not torch.cuda.is_available():
        assert "GPU" in there["triton"]
        assert "triton" not in findings.raw["128"]
    for samples in findings.raw.values():
        assert {len(repeats) for each in samples.values() for repeats in each.values()} == {2}


@pytest.mark.skipif(not HAS_NATIVE, reason="the C++ part is not built")
def test_the_native_row_is_a_norm_that_moves_what_a_copy_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    one = measure.Bench(1).rms_norm(576, rows=5)
    assert one.bytes == 2 * 4 * 5 * 576
    assert one.seconds > 0
    assert one.error < 2e-6


def test_the_interpreter_is_no_gpu(rmsnorm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dict(rmsnorm._about())["triton"] is not None


def test_curves_cross_between_two_points(rmsnorm: ModuleType) -> None:
    # 100 + 3 n and 4 n meet at n = 100; over log-log the straight lines meet nearby.
    tokens = [50, 90, 110, 200]
    slow = [100 + 3.0 * n for n in tokens]
    assert rmsnorm.crossings(tokens, slow, [4.0 * n for n in tokens]) == [pytest.approx(100, 0.01)]
    assert rmsnorm.crossings(tokens, slow, [1.0] * 4) == []


def test_what_loses_least_at_its_worst_is_taken(rmsnorm: ModuleType) -> None:
    assert rmsnorm.worst({"a": [1.0, 8.0], "b": [2.0, 4.0]}) == {"a": 2.0, "b": 2.0}
    samples = {
        "copy": {1: [1.0], 100: [2.0]},
        rmsnorm.TORCH: {1: [1.0], 100: [40.0]},
        "native": {1: [3.0], 100: [4.0]},
    }
    first, second = rmsnorm._conclusion({64: samples}, 4)
    assert "fastest with native" in first
    assert "50% of the copy, and take 10.0 times as long with torch" in first
    assert "torch, op by op is fastest for 1, native from about" in second
    assert first.endswith("fails: with rows of 64 the best reaches 50% of the copy only.")
    assert second.endswith("native for 64 (at most 3.0 times the fastest; torch, op by op 10.0).")
    samples["native"] = {1: [0.5], 100: [2.5]}
    assert "one kernel is fastest for few" in rmsnorm._verdict({64: samples})
    samples["native"][1] = [3.0]
    assert rmsnorm._verdict({64: samples}) == "The hypothesis holds."
