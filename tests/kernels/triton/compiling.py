"""Compiles every kernel for an H100 or H200 (sm_90) without a GPU: `python -m ...compiling`.

Ops are called as they are on a GPU, on small tensors of the CPU's; each launch compiles the variant
of the kernel that it would run, and runs nothing. It prints a line for each: the kernel, its shared
memory in bytes, and which instructions of the tensor cores it has.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

SM_90 = GPUTarget("cuda", 90, 32)
TENSOR_CORE = re.compile(r"(wgmma\.mma_async|mma)\.sync\.aligned\.m\d+n\d+k\d+")


@dataclass
class Compiled:
    """One variant of a kernel."""

    name: str
    shared: int  # bytes
    instructions: set[str]
    cubin: bytes

    def loop_length(self) -> int:
        """Machine instructions of the longest loop that has no other in it."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        places: dict[str, int] = {}
        loops, count = [], 0
        for line in lines.splitlines():
            if label := re.match(r"(\.L_x_\d+):", line):
                places[label[1]] = count
            count += bool(re.match(r"\s+/\*[0-9a-f]{4,}\*/\s", line))
            target = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if target and target[1] in places:
                loops.append((places[target[1]], count))
        inner = [b - a for a, b in loops if not any(a < c and d < b for c, d in loops)]
        return max(inner, default=0)


@dataclass
class Compiler:
    """Stands in for the driver of a GPU, and for launches."""

    variants: dict[str, Compiled] = field(default_factory=dict)  # by the hash of what was compiled

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return SM_90

    def launcher(self, kernel: JITFunction, grid: Any) -> Callable[..., None]:
        def compile_only(*args: Any, **options: Any) -> None:
            found = kernel.run(*args, grid=grid, warmup=True, **options)
            instructions = {match.group() for match in TENSOR_CORE.finditer(found.asm["ptx"])}
            self.variants[found.hash] = Compiled(
                kernel.__name__, found.metadata.shared, instructions, found.asm["cubin"]
            )

        return compile_only


def compile_all() -> Iterator[Compiled]:
    """Every variant that the ops and the sampler launch on the shapes below."""
    compiler = Compiler()
    triton.runtime.driver.set_active(compiler)
    launch = lambda kernel, grid: compiler.launcher(kernel, grid)  # noqa: E731 - so that it is a method
    JITFunction.__getitem__ = launch  # type: ignore[method-assign]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        _ops(dtype)
    _sampler()
    yield from compiler.variants.values()


def _ops(dtype: torch.dtype) -> None:
    from pellucid.kernels.triton.thresholds import Thresholds
    from pellucid.kernels.triton_ops import TritonOps
    from pellucid.quant.rounding import round_rows
    from tests.kernels.triton.test_product import FORMATS, Held

    cpu = torch.device("cpu")
    ops = TritonOps(Thresholds(dense=1))
    tall = TritonOps(Thresholds(dense=1, product_rows=32, dense_rows=128))
    x, norm = torch.ones(20, 256, dtype=dtype), torch.ones(256)
    ops.rms_norm(x, norm, 1e-6)
    ops.add_rms_norm(x, x, norm, 1e-6)
    ops.silu_mul(x)
    ops.gelu_mul(x, True)
    ops.gelu_mul(x, False)
    rounded = (round_rows(np.ones((64, 256), np.float32), bits) for bits in (4, 8))
    for matrix in (*rounded, FORMATS["Q6_K"]):
        weight = ops.pack([Held(matrix)], dtype, cpu)
        ops.linear(x[:1], weight)
        tall.linear(x, weight)
        ops.logits(x[:1], weight)
    in_parts = ops.pack([Held(round_rows(np.ones((64, 1024), np.float32), bits=4))], dtype, cpu)
    for rows in (1, 9000):
        ops.linear(torch.ones(rows, 1024, dtype=dtype), in_parts, torch.ones(64, dtype=dtype))
    wide = torch.ones(200, 4096, dtype=dtype)
    float_weight = torch.ones(300, 4096, dtype=dtype)
    for rows in (1, 65):
        ops.linear(wide[:rows], float_weight, float_weight[:, 0].contiguous())
        tall.linear(wide[:rows], float_weight)
        ops.logits(wide[:rows], float_weight)
    for kv_dtype in (dtype, torch.int8):
        _attention(ops, dtype, kv_dtype, head_dim=128)
    if dtype == torch.bfloat16:  # the largest heads, which are compiled slowly
        for kv_dtype in (dtype, torch.int8):
            _attention(ops, dtype, kv_dtype, head_dim=256)


def _attention(ops: Any, dtype: torch.dtype, kv_dtype: torch.dtype, head_dim: int) -> None:
    from pellucid.kernels.interface import allocate_kv
    from tests.kernels.paged import Pool
    from tests.kernels.test_reference_ops import inputs_at

    heads, kv_heads = 8, 2
    angles = torch.ones(64, head_dim // 2)
    q = torch.ones(20, heads, head_dim, dtype=dtype)
    k = torch.ones(20, kv_heads, head_dim, dtype=dtype)
    pool = allocate_kv(1, 40, 16, kv_heads, head_dim, kv_dtype, torch.device("cpu"))[0]
    inputs = inputs_at(list(range(20)), list(range(20)))
    ops.rope_and_write_kv(q, k, k, angles, angles, inputs, pool)
    # Two sequences with a token each, one of them in its second partition; and a chunk.
    for shares in ([(300, 299, 1), (20, 19, 1)], [(300, 280, 20)]):
        blocks = Pool(16, 40)
        step = blocks.inputs([(blocks.add_sequence(end), *share) for end, *share in shares])
        for window, softcap in ((None, None), (30, 5.0)):
            step.plan = ops.plan_attention(step, pool, heads, [window])
            ops.paged_attention(q[: len(step.positions)], pool, step, 0.1, window, softcap)


def _sampler() -> None:
    from pellucid.sample.constraints import Constraints
    from pellucid.sample.penalties import Penalties, TokenCounts
    from pellucid.sample.sampler import SamplingColumns
    from pellucid.sample.triton.sampler import TritonSampler

    sampler = TritonSampler(2)
    constraints = [Constraints(logit_bias={1: 1.0}, allowed_token_ids=[1])]
    for vocab in (32_000, 151_936, 256_001):
        logits = torch.zeros(2, vocab)
        sampler.bias(logits, [1], constraints)
        sampler.ban(logits, [1], constraints, [[2]])
        sampler.penalise(logits, [1], [1], [Penalties(TokenCounts([1], [2]), 1.1, 0.1, 0.1)])
        sampler.forbid(logits, [1], np.zeros((1, -(-vocab // 32)), np.uint32))
        sampler.describe(logits, torch.zeros(2, dtype=torch.int64), 5)
        for temperature, top_k, top_p in (
            (0, 0, 1),
            (1, 0, 1),
            (1, 50, 1),
            (1, 0, 0.9),
            (1, 9, 0.9),
        ):
            every = np.ones(2)
            columns = SamplingColumns(
                *((every * temperature).astype(np.float32), (every * top_k).astype(np.int64)),
                *((every * top_p).astype(np.float32), np.zeros(2, np.float32)),
                *(np.zeros(2, np.int64), np.zeros(2, np.int64)),
            )
            sampler.sample(logits, columns, np.arange(2))


if __name__ == "__main__":
    for variant in compile_all():
        print(variant.name, variant.shared, *sorted(variant.instructions))
