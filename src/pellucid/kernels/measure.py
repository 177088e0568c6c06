"""Every native op by itself, on shapes of a model: how fast, how near the limits, how exact.

An op is recorded as often in a row, over separate weights or KV pools, as it takes to find none of
them in a cache: that is how the layers of a model meet it. Inputs are random; they enter a program
as the rows of an embedding table.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.kernels.dispatch import select_ops
from pellucid.kernels.interface import (
    AttentionInputs,
    IntegerMatrix,
    KVLayer,
    allocate_kv,
    kv_head_bytes,
)
from pellucid.kernels.machine_limits import Limits, measure_limits
from pellucid.kernels.native import NativeOps, attention_arithmetic, native_layout, thread_team
from pellucid.kernels.native_weights import NativeWeight, pack_float, pack_integers
from pellucid.kernels.reference import ReferenceOps, round_heads

COLD_BYTES = 96 << 20  # of weights or keys and values that a program goes through
MAX_COPIES = 64
SECONDS = 0.15  # per measurement, three runs at least; the best one counts
BLOCK_SIZE = 16
EPS = 1e-6
WEIGHTS = ("int4", "int8", "bfloat16", "float32")
KV_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


@dataclass(frozen=True, slots=True)
class Shapes:
    """The sizes of a model that its ops depend on."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @classmethod
    def of(cls, config: Any) -> Shapes:
        """Those of a `ModelConfig`."""
        return cls(
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            vocab=config.vocab_size,
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each product."""
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "qkv": (query + 2 * kv, self.hidden),
            "out": (self.hidden, query),
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
            "head": (self.vocab, self.hidden),
        }


@dataclass(frozen=True, slots=True)
class Measurement:
    """One op at one shape; seconds of one execution, of which `bytes` and `operations` are done."""

    op: str
    shape: str
    weights: str  # int4, int8, bfloat16, float32; of attention the KV pool's; "" for other ops
    rows: int
    seconds: float
    bytes: int
    error: float  # norm of the difference to the reference, over the norm of that
    operations: int = 0  # a product and its sum are two; not counted for small ops
    arithmetic: str = ""  # int8, bfloat16 or float32: what the operations are done in

    def share(self, limits: Limits) -> tuple[str, float] | None:
        """What limits the op, and how much of what that limit allows was reached.

        None for ops that find their numbers in a cache.
        """
        if not self.operations:
            return None
        seconds = {"memory": self.bytes / limits.memory}
        if peak := getattr(limits, self.arithmetic):
            seconds["compute"] = self.operations / peak
        limit = max(seconds, key=lambda name: seconds[name])
        return limit, seconds[limit] / self.seconds


def measure(
    shapes: Shapes, rows: Sequence[int], context: int, threads: int
) -> tuple[Limits, list[Measurement]]:
    """This machine's limits, and all that a step of a decoder is made of.

    Args:
        rows: tokens of the steps to measure.
        context: tokens that attention looks back on.

    Raises:
        KernelsUnavailable: native kernels do not run here, or not on heads of this size.
    """
    select_ops("native", torch.device("cpu"), shapes.head_dim)
    torch.set_num_threads(threads)
    before = measure_limits(threads)
    measured = list(Bench(threads).all(shapes, rows, context))
    # Others may have used the machine meanwhile: the better of two is nearer the truth.
    return before.better(measure_limits(threads)), measured


class Bench:
    """Measures ops on one team of threads."""

    def __init__(self, threads: int) -> None:
        self._team = thread_team(threads)
        self._rng = np.random.default_rng(0)

    def all(self, shapes: Shapes, rows: Sequence[int], context: int) -> Iterator[Measurement]:
        """See `measure`."""
        for count in rows:
            for name, (n, k) in shapes.linears.items():
                for weights in WEIGHTS:
                    if k % 32 == 0 or weights == "float32":
                        yield self.linear(name, n, k, weights, count)
        for count in rows:
            for kv_dtype in KV_DTYPES:
                yield self.attention(shapes, kv_dtype, [(context, 1)] * count)
        for kv_dtype in KV_DTYPES:
            yield self.attention(shapes, kv_dtype, [(context, context)])
        for count in rows:
            yield from self.row_ops(shapes, count)

    # ---- products

    def linear(self, name: str, n: int, k: int, weights: str, rows: int) -> Measurement:
        """y = x w^T with a weight [n, k] of the kind `weights`."""
        piece, dense = self._weight(weights, n, k)
        copies = _copies(piece.nbytes) if rows <= 32 else 1
        pieces = [piece] + [_copy(piece) for _ in range(copies - 1)]
        x = self._random(rows, k)
        ops = NativeOps()
        seconds, out = self._run(
            ops, x, "linear", lambda t: ops.linear(t, NativeWeight(tuple(pieces)))
        )
        expected = F.linear(x.double(), dense.double())
        arithmetic = "int8" if weights in ("int4", "int8") else weights
        return Measurement(
            *(name, f"{n}x{k}", weights, rows, seconds / copies),
            bytes=piece.nbytes + rows * (k + 4 * n),
            operations=2 * rows * n * k,
            error=_error(out[:, :n], expected),
            arithmetic=arithmetic,
        )

    def _weight(self, kind: str, n: int, k: int) -> tuple[Any, Tensor]:
        if kind in ("int4", "int8"):
            bits = int(kind[3:])
            q = self._rng.integers(0, 1 << bits, (n, k), dtype=np.uint8)
            scales = self._rng.uniform(0.5, 1, (n, k // 32)).astype(np.float16) / (1 << bits)
            scales = scales.astype(np.float16).astype(np.float32)
            matrix = IntegerMatrix(q, scales, bits=bits, zero=1 << (bits - 1))
            return pack_integers(matrix), torch.from_numpy(matrix.dense())
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        dense = self._random(n, k).to(dtype)
        return pack_float(dense), dense

    # ---- attention

    def attention(
        self, shapes: Shapes, dtype: torch.dtype, sequences: list[tuple[int, int]]
    ) -> Measurement:
        """Attention for sequences of (length, tokens of it in this step)."""
        heads, kv_heads, head_dim = shapes.heads, shapes.kv_heads, shapes.head_dim
        inputs, num_blocks = attention_inputs(sequences)
        rows = len(inputs.positions)
        slot_bytes = 2 * kv_heads * kv_head_bytes(head_dim, dtype)
        pool_bytes = sum(length for length, _ in sequences) * slot_bytes
        layers = _copies(pool_bytes) if rows == len(sequences) else 1
        shape = (num_blocks, BLOCK_SIZE, kv_heads, head_dim)
        pools = [self._pool(shape, dtype) for _ in range(layers)]
        x, scale = self._random(rows, heads * head_dim), head_dim**-0.5

        def forward(ops: ReferenceOps, pools: list[KVLayer], t: Tensor) -> Tensor:
            for pool in pools:  # the output of one layer is as good a query as any
                t = ops.paged_attention(
                    t.view(len(t), heads, head_dim), pool, inputs, scale
                ).flatten(1)
            return t

        ops, reference = NativeOps(), ReferenceOps()
        packed = [native_layout(pool) for pool in pools]
        seconds, out = self._run(
            ops, x, "paged_attention", lambda t: forward(ops, packed, t), inputs
        )
        inputs.plan = reference.plan_attention(inputs, pools[0], heads)
        seen = sum(length - count + 1 + i for length, count in sequences for i in range(count))
        decoding = rows == len(sequences)
        return Measurement(
            "decoding attention" if decoding else "prompt attention",
            f"{heads}/{kv_heads}x{head_dim}, {sequences[0][0]}",
            *(str(dtype).removeprefix("torch."), rows, seconds / layers),
            bytes=pool_bytes + rows * 8 * heads * head_dim,
            operations=4 * seen * heads * head_dim,
            error=_error(out, forward(reference, pools, x)),
            arithmetic=attention_arithmetic(dtype),
        )

    def _pool(self, shape: tuple[int, ...], dtype: torch.dtype) -> KVLayer:
        k, v = self._random(*shape), self._random(*shape)
        if dtype != torch.int8:
            return KVLayer(k.to(dtype), v.to(dtype))
        (k, k_scale), (v, v_scale) = round_heads(k), round_heads(v)
        return KVLayer(k, v, k_scale, v_scale)

    # ---- the rest

    def row_ops(self, shapes: Shapes, rows: int) -> Iterator[Measurement]:
        """Ops that touch each number once: what they take, and how exact they are."""
        hidden, inner = shapes.hidden, shapes.inner
        norm = 1 + 0.1 * self._random(hidden)
        halves = [hidden, hidden]

        def add_norm(ops: ReferenceOps, t: Tensor) -> Tensor:
            update, residual = torch.split(t, halves, dim=1)
            return ops.add_rms_norm(update, residual, norm, EPS)[0]

        yield self._row_op("add_rms_norm", "rms_norm", rows, 2 * hidden, hidden, add_norm)
        yield self._row_op(
            "silu_mul", "silu_mul", rows, 2 * inner, inner, lambda ops, t: ops.silu_mul(t)
        )
        yield self._row_op(
            "gelu_mul",
            "gelu_tanh_mul",
            rows,
            2 * inner,
            inner,
            lambda ops, t: ops.gelu_mul(t, True),
        )
        yield self._rope(shapes, rows)

    def rms_norm(self, columns: int, rows: int) -> Measurement:
        """The norm by itself, without the addition that it shares an instruction with in a model.

        It reads and writes as much as a copy would; the weight stays in the cache.
        """
        norm, name = 1 + 0.1 * self._random(columns), "rms_norm"
        return self._row_op(
            name, name, rows, columns, columns, lambda ops, t: ops.rms_norm(t, norm, EPS)
        )

    def _rope(self, shapes: Shapes, rows: int) -> Measurement:
        heads, kv_heads, head_dim = shapes.heads, shapes.kv_heads, shapes.head_dim
        inputs, num_blocks = attention_inputs([(rows, rows)])
        angles = torch.outer(torch.arange(rows).float(), torch.rand(head_dim // 2))
        sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        shape = (1, num_blocks, BLOCK_SIZE, kv_heads, head_dim)
        pool = allocate_kv(*shape, torch.float32, torch.device("cpu"))[0]

        def rope(ops: ReferenceOps, t: Tensor) -> Tensor:
            q, k, v = (p.unflatten(1, (-1, head_dim)) for p in torch.split(t, sizes, dim=1))
            cos, sin = angles.cos(), angles.sin()
            return ops.rope_and_write_kv(q, k, v, cos, sin, inputs, pool).flatten(1)

        name = "rope_and_write_kv"
        return self._row_op(name, name, rows, sum(sizes), sum(sizes), rope, inputs)

    def _row_op(
        self,
        name: str,
        instruction: str,
        rows: int,
        read: int,
        written: int,
        op: Callable[[ReferenceOps, Tensor], Tensor],
        inputs: AttentionInputs | None = None,
    ) -> Measurement:
        """An op that reads and writes so many numbers of each row."""
        ops, x = NativeOps(), self._random(rows, read)
        seconds, out = self._run(ops, x, instruction, lambda t: op(ops, t), inputs)
        error = _error(out, op(ReferenceOps(), x))
        return Measurement(name, f"{read}", "", rows, seconds, 4 * rows * (read + written), error)

    # ---- all

    def _random(self, *shape: int) -> Tensor:
        return torch.from_numpy(self._rng.standard_normal(shape, dtype=np.float32))

    def _run(
        self,
        ops: NativeOps,
        x: Tensor,
        instruction: str,
        op: Callable[[Tensor], Tensor],
        inputs: AttentionInputs | None = None,
    ) -> tuple[float, Tensor]:
        """Seconds of all instructions of that name in the best run of `op` on `x`; its result."""
        rows = len(x)
        table = NativeWeight((pack_float(x),))
        shape: list[int] = []

        def forward(ids: Tensor, _: AttentionInputs) -> Tensor:
            output = op(ops.embedding(ids, table))
            shape[:] = rows, output.shape[1]
            return output

        program = ops.record(forward, rows)
        step = attention_inputs([(rows, rows)])[0] if inputs is None else inputs
        out = torch.empty(shape)
        ours = [line.split()[0] == instruction for line in program.describe()]
        program.timed = True
        best, runs, end = math.inf, 0, time.perf_counter() + SECONDS
        while runs < 3 or time.perf_counter() < end:
            program.run(
                *(self._team, torch.arange(rows), step.positions, step.slot_mapping),
                *(step.block_tables, step.query_start, step.seq_lens, torch.arange(rows), out),
            )
            times = program.times()
            best = min(best, sum(t for t, own in zip(times, ours, strict=True) if own) * 1e-9)
            runs += 1
        return best, out


def _copies(num_bytes: int) -> int:
    return max(1, min(MAX_COPIES, COLD_BYTES // num_bytes))


def _copy(piece: Any) -> Any:
    return type(piece).from_bytes(piece.n, piece.k, piece.format, piece.to_bytes())


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def attention_inputs(sequences: list[tuple[int, int]]) -> tuple[AttentionInputs, int]:
    """A step of sequences of (length, tokens of it in the step), and the blocks that they take."""
    lengths = torch.tensor([length for length, _ in sequences])
    counts = torch.tensor([count for _, count in sequences])
    blocks = -(-lengths // BLOCK_SIZE)
    first = blocks.cumsum(0) - blocks
    tables = torch.arange(int(blocks.max())) + first.unsqueeze(1)
    tables[tables >= (first + blocks).unsqueeze(1)] = 0
    positions = torch.cat([torch.arange(length - count, length) for length, count in sequences])
    starts = torch.repeat_interleave(first * BLOCK_SIZE, counts)
    inputs = AttentionInputs(
        positions=positions,
        slot_mapping=starts + positions,
        block_tables=tables.to(torch.int32),
        query_start=torch.cat((torch.zeros(1), counts.cumsum(0))).to(torch.int32),
        seq_lens=lengths.to(torch.int32),
        query_lens_list=counts.tolist(),
        seq_lens_list=lengths.tolist(),
    )
    return inputs, int(blocks.sum())
