"""The choice of instruction set, and every other one this CPU has put through the same tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

native = pytest.importorskip("pellucid._native", reason="the native kernels are not built")

HERE = Path(__file__).parent
NEEDS = {
    "portable": None,
    "avx2": "avx2",
    "avx2vnni": "avx_vnni",
    "avx512": "avx512",
    "avx512bf16": "avx512_bf16",
    "neon": "neon_dot",
}


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
def test_all_other_tests_on(isa: str) -> None:
    need = NEEDS[isa]
    if need is not None and not native.features()[need]:
        pytest.skip(f"this CPU has no {isa}")
    shown = run(isa, "-c", "from pellucid import _native; print(_native.isa())")
    assert shown.stdout.strip() == isa, shown.stderr
    if isa == native.isa():
        return  # the tests beside this one run on it
    names = ("gemm", "row_ops", "attention", "program", "sampling", "lora")
    tests = [str(HERE / f"test_{name}.py") for name in names]
    result = run(isa, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests)
    assert result.returncode == 0, result.stdout[-3000:]


DIGEST = """
import hashlib, numpy as np
from tests.native.formats import QUANT_FORMATS, make_case
from tests.native.test_gemm import product
rng = np.random.default_rng(1)
digest = hashlib.sha256()
for name in [*QUANT_FORMATS, "float32", "bfloat16"]:
    case = make_case(name, 40, 512, rng)
    digest.update(product(case, rng.standard_normal((5, 512), dtype=np.float32)).tobytes())
from tests.native.test_sampling import make_batch, outcome
for row in outcome(*make_batch(20, 1003, rng), threads=2):
    digest.update(row)
print(digest.hexdigest())
"""


def test_all_with_fused_multiply_add_agree_to_the_bit() -> None:
    features = native.features()
    isas = [isa for isa, need in NEEDS.items() if need is not None and features[need]]
    if len(isas) < 2:
        pytest.skip("this CPU has fewer than two such instruction sets")
    results = [run(isa, "-c", DIGEST) for isa in isas]
    assert all(r.returncode == 0 for r in results), results[0].stderr
    assert len({r.stdout for r in results}) == 1


def test_an_unknown_name_is_refused() -> None:
    result = run("sse9", "-c", "from pellucid import _native; _native.isa()")
    assert result.returncode != 0
    assert "PELLUCID_ISA=sse9: unknown" in result.stderr
