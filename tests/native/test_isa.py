"""The choice of instruction set, and every other one this CPU has put through the same tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

native = pytest.importorskip("pellucid._native", reason="the native kernels are not built")

HERE = Path(__file__).parent
NEEDS = {"portable": None, "avx2": "avx2", "avx2vnni": "avx_vnni", "avx512": "avx512"}


def run(isa: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PELLUCID_ISA": isa}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )


def test_the_best_there_is_by_default() -> None:
    if "PELLUCID_ISA" in os.environ:
        pytest.skip("PELLUCID_ISA is set")
    features = native.features()
    available = [isa for isa, need in NEEDS.items() if need is None or features[need]]
    assert native.isa() == available[-1]


@pytest.mark.parametrize("isa", NEEDS)
def test_all_gemm_tests_on(isa: str) -> None:
    need = NEEDS[isa]
    if need is not None and not native.features()[need]:
        pytest.skip(f"this CPU has no {isa}")
    shown = run(isa, "-c", "from pellucid import _native; print(_native.isa())")
    assert shown.stdout.strip() == isa, shown.stderr
    if isa == native.isa():
        return  # the tests beside this one run on it
    result = run(isa, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(HERE / "test_gemm.py"))
    assert result.returncode == 0, result.stdout[-3000:]


def test_an_unknown_name_is_refused() -> None:
    result = run("sse9", "-c", "from pellucid import _native; _native.isa()")
    assert result.returncode != 0
    assert "PELLUCID_ISA=sse9: unknown" in result.stderr
