"""Every kernel compiles for a GPU that is not here, and multiplies with its tensor cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments. Tests before may have chosen the interpreter for all."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_every_kernel_compiles_for_sm_90() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'pellucid[gpu]'")
    done = run("-m", "tests.kernels.triton.compiling")
    assert done.returncode == 0, done.stderr
    instructions = defaultdict(set)
    for line in done.stdout.splitlines():
        name, shared, *found = line.split()
        assert int(shared) <= 227 << 10  # what a block may have on this GPU
        instructions[name].update(found)
    assert {"rope_and_write_kv_kernel", "draw_kernel", "digit_kernel"} <= instructions.keys()
    # One instruction each, whatever the height of a tile: that is why bits should be the same.
    for name in ("attention_kernel", "integer_product_kernel"):
        assert instructions[name] == {"mma.sync.aligned.m16n8k16"}
    assert instructions["dense_kernel"] == {"wgmma.mma_async.sync.aligned.m64n128k16"}


FOR_ANY_ROWS = """
import torch, triton
from triton.runtime.jit import JITFunction
from tests.kernels.triton.compiling import Compiler
compiler = Compiler()
triton.runtime.driver.set_active(compiler)
JITFunction.__getitem__ = lambda kernel, grid: compiler.launcher(kernel, grid)
from pellucid.kernels.triton.dense import dense_product
weight, x = torch.ones(300, 4096, dtype=torch.bfloat16), torch.ones(32, 4096, dtype=torch.bfloat16)
for rows in (1, 2, 16, 32):
    dense_product(x[:rows], weight, None, torch.empty(rows, 300, dtype=torch.bfloat16))
print(*(variant.name for variant in compiler.variants.values()))
"""


WITH_ONE_ROW = """
import torch, triton
from triton.runtime.jit import JITFunction
from tests.kernels.triton.compiling import Compiler
compiler = Compiler()
triton.runtime.driver.set_active(compiler)
JITFunction.__getitem__ = lambda kernel, grid: compiler.launcher(kernel, grid)
from pellucid.kernels.triton.product import OUTPUTS, integer_product
from pellucid.kernels.triton.weights import BLOCK_K, IntegerWeight
n, k, dtype = 4096, 4096, torch.bfloat16
scales = torch.ones(n, k // 32, dtype=torch.float16)
for bits in (4, 8):
    q = torch.zeros(n, k * bits // 32, dtype=torch.int32)
    weight = IntegerWeight(q, scales, None, k, bits, 32, 1 << (bits - 1), dtype)
    integer_product(torch.ones(1, k, dtype=dtype), weight, None, torch.empty(1, n, dtype=dtype))
product, add, product_8 = compiler.variants.values()
for variant in (product, product_8):
    print(variant.loop_length() * 32 / (OUTPUTS * BLOCK_K))
"""


@pytest.mark.slow
def test_weights_take_about_as_many_instructions_as_there_is_time_for() -> None:
    """What an H200 can start while a weight comes: see `product.py`. Triton 3.6 takes twice 3.9's.

    With a conversion for each weight, and fragments by way of shared memory, it was 18 and 12.
    """
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'pellucid[gpu]'")
    done = run("-c", WITH_ONE_ROW)
    bits_4, bits_8 = map(float, done.stdout.split())
    assert 1 < bits_4 < 7, done.stderr
    assert 1 < bits_8 < 9


@pytest.mark.slow
def test_another_number_of_rows_compiles_nothing_new() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'pellucid[gpu]'")
    done = run("-c", FOR_ANY_ROWS)
    assert done.stdout.split() == ["dense_kernel", "add_parts_kernel"], done.stderr
