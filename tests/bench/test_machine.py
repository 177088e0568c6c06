from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from pellucid.bench import machine


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    return tmp_path


def test_instruction_sets_agree_with_torch() -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    known = {"AVX2": {"AVX2"}, "AVX512": {"AVX2", "AVX-512"}}
    assert known.get(capability, set()) <= set(machine.instruction_sets())


@pytest.mark.parametrize(
    ("quota", "expected"), [("50000 100000", 0.5), ("100000 100000", 1.0), ("max 100000", None)]
)
def test_cpu_quota_cuts_the_cores(quota: str, expected: float | None, cgroup: Path) -> None:
    (cgroup / "cpu.max").write_text(quota + "\n")
    assert machine.usable_cores() == (expected or len(os.sched_getaffinity(0)))


def test_memory_limit(cgroup: Path) -> None:
    assert machine.memory_limit() is None
    (cgroup / "memory.max").write_text("max\n")
    assert machine.memory_limit() is None
    (cgroup / "memory.max").write_text("1073741824\n")
    assert machine.memory_limit() == 1 << 30
    assert machine.describe_machine()["ram_limit_mib"] == 1024


def test_description_is_json() -> None:
    described = json.loads(json.dumps(machine.describe_machine()))
    assert described["logical_cores"] == os.cpu_count()
    assert machine.describe_versions()["torch"] == torch.__version__
    versions = machine.describe_versions("pytest", "no-such-package")
    assert (versions["pytest"], versions["no-such-package"]) == (pytest.__version__, None)


@pytest.mark.parametrize(
    ("release", "shown"),
    [
        ("6.18.44", "Linux 6.18.44"),
        ("6.18.44-cloud7-amd64+", "Linux 6.18.44"),
        ("5.15.167.4-microsoft-standard-WSL2", "Linux 5.15.167.4"),
        ("unknown", "Linux"),
    ],
)
def test_a_kernel_is_told_by_its_number(
    release: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    monkeypatch.setattr(machine.platform, "release", lambda: release)
    assert machine.describe_machine()["system"] == shown
