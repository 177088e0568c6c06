"""Single ops on shapes of a model, for a GPU: inputs, what runs, and what it has to move and add.

Bytes count each input read once and each output written once, in the dtype of the model; that is
the least that any kernel moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, IntegerMatrix, KVLayer, Weight
from pellucid.kernels.reference import ReferenceOps
from pellucid.kernels.shapes import BLOCK_SIZE, Shapes, attention_inputs

EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Case:
    """One op at one shape. `prepare` makes what runs, of some ops, on tensors of some dtype."""

    op: str
    shape: str
    rows: int
    inputs: tuple[Tensor, ...]
    prepare: Callable[[ReferenceOps, tuple[Tensor, ...]], Callable[[], Tensor]]
    bytes: int
    operations: int = 0  # a product and its sum are two; 0 where memory is all that counts
    weights: str = ""
    baseline: bool = True  # plain torch does the same work, so that comparing speeds is fair

    def expected(self) -> Tensor:
        """The reference's result in float32, from the same numbers."""
        wide = tuple(t.float() if t.is_floating_point() else t for t in self.inputs)
        return self.prepare(ReferenceOps(), wide)()

    def copies(self, ops: ReferenceOps, count: int) -> list[Callable[[], Tensor]]:
        """What runs, so many times over, each on tensors of its own."""
        every = [self.inputs]
        every += [tuple(t.clone() for t in self.inputs) for _ in range(count - 1)]
        return [self.prepare(ops, inputs) for inputs in every]


class Cases:
    """Makes cases on one device in one dtype, from fixed random numbers."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator(device=device).manual_seed(0)
        self._rng = np.random.default_rng(0)
        self._held: dict[tuple[int, int, int], Held] = {}

    def all(self, shapes: Shapes, rows: list[int], context: int) -> Iterator[Case]:
        """What a step of a decoder is made of."""
        for name, (n, k) in shapes.linears.items():
            for count in rows:
                for bits in (4, 8) if k % 32 == 0 and name != "head" else ():
                    yield self.integer_product(name, n, k, bits, count)
                yield self.dense_product(name, n, k, count)
        for count in rows:
            yield self.attention(shapes, [(context, 1)] * count)
        yield self.attention(shapes, [(context, context)])
        for count in rows:
            yield self.add_rms_norm(count, shapes.hidden)
            yield self.gated(count, shapes.inner)
            yield self.rope(shapes, count)

    def rms_norm(self, rows: int, n: int) -> Case:
        weight = 1 + 0.1 * self._random(n, dtype=torch.float32)
        return self._case(
            *("rms_norm", f"{n}", rows, (self._random(rows, n),)),
            lambda ops, x: lambda: ops.rms_norm(x[0], weight, EPS),
            2 * rows * n,
        )

    def add_rms_norm(self, rows: int, n: int) -> Case:
        weight = 1 + 0.1 * self._random(n, dtype=torch.float32)
        return self._case(
            *("add_rms_norm", f"{n}", rows, (self._random(rows, n), self._random(rows, n))),
            lambda ops, x: lambda: ops.add_rms_norm(x[0], x[1], weight, EPS)[0],
            4 * rows * n,
        )

    def gated(self, rows: int, n: int) -> Case:
        return self._case(
            *("silu_mul", f"{n}", rows, (self._random(rows, 2 * n),)),
            lambda ops, x: lambda: ops.silu_mul(x[0]),
            3 * rows * n,
        )

    def rope(self, shapes: Shapes, rows: int) -> Case:
        heads, kv_heads, head_dim = shapes.heads, shapes.kv_heads, shapes.head_dim
        inputs, num_blocks = self._step([(rows, rows)])
        angles = self._random(rows, head_dim // 2, dtype=torch.float32)
        q, k, v = (self._random(rows, h, head_dim) for h in (heads, kv_heads, kv_heads))
        pool = (num_blocks, BLOCK_SIZE, kv_heads, head_dim)

        def prepare(ops: ReferenceOps, x: tuple[Tensor, ...]) -> Callable[[], Tensor]:
            kv = KVLayer(x[0].new_zeros(pool), x[0].new_zeros(pool))
            cos, sin = angles.cos(), angles.sin()
            return lambda: ops.rope_and_write_kv(x[0], x[1], x[2], cos, sin, inputs, kv)

        size = 2 * (q.numel() + k.numel() + v.numel())
        return self._case(
            "rope_and_write_kv", f"{heads}/{kv_heads}x{head_dim}", rows, (q, k, v), prepare, size
        )

    def attention(self, shapes: Shapes, sequences: list[tuple[int, int]]) -> Case:
        """Of sequences of (length, tokens of it in the step)."""
        heads, kv_heads, head_dim = shapes.heads, shapes.kv_heads, shapes.head_dim
        inputs, num_blocks = self._step(sequences)
        rows = len(inputs.positions)
        pool = (num_blocks, BLOCK_SIZE, kv_heads, head_dim)
        q = self._random(rows, heads, head_dim)

        def prepare(ops: ReferenceOps, x: tuple[Tensor, ...]) -> Callable[[], Tensor]:
            kv = KVLayer(x[1], x[2])
            step = replace(inputs, plan=ops.plan_attention(inputs, kv, heads))
            return lambda: ops.paged_attention(x[0], kv, step, head_dim**-0.5)

        seen = sum(length - count + 1 + i for length, count in sequences for i in range(count))
        slots = sum(length for length, _ in sequences)
        decoding = rows == len(sequences)
        return self._case(
            "decoding attention" if decoding else "prompt attention",
            f"{heads}/{kv_heads}x{head_dim}, {sequences[0][0]}",
            rows,
            (q, self._random(*pool), self._random(*pool)),
            prepare,
            2 * q.numel() + 2 * slots * kv_heads * head_dim,
            operations=4 * seen * heads * head_dim,
        )

    def dense_product(self, name: str, n: int, k: int, rows: int) -> Case:
        kind = str(self.dtype).removeprefix("torch.")
        return self._case(
            *(name, f"{n}x{k}", rows, (self._random(rows, k), self._random(n, k))),
            lambda ops, x: lambda: ops.linear(x[0], x[1]),
            rows * k + n * k + rows * n,
            operations=2 * rows * n * k,
            weights=kind,
        )

    def logits(self, n: int, k: int, rows: int) -> Case:
        """A head of n ids over rows of k numbers; sums and results are float32."""
        return self._case(
            *("logits", f"{n}x{k}", rows, (self._random(rows, k), self._random(n, k))),
            lambda ops, x: lambda: ops.logits(x[0], x[1]),
            rows * k + n * k + rows * n * (4 // self.dtype.itemsize),
            operations=2 * rows * n * k,
        )

    def integer_product(self, name: str, n: int, k: int, bits: int, rows: int) -> Case:
        """The reference multiplies with the dense matrix that the integers stand for."""
        if (n, k, bits) not in self._held:
            self._held[n, k, bits] = Held(self._integers(n, k, bits))
        held = self._held[n, k, bits]

        packed: dict[tuple[ReferenceOps, torch.dtype], Weight] = {}

        def prepare(ops: ReferenceOps, x: tuple[Tensor, ...]) -> Callable[[], Tensor]:
            key = ops, x[0].dtype
            if key not in packed:  # which takes the host long; a copy on the device does not
                packed[key] = ops.pack([held], x[0].dtype, self.device)
            weight = deepcopy(packed[key])
            return lambda: ops.linear(x[0], weight)

        item = self.dtype.itemsize
        return Case(
            *(name, f"{n}x{k}", rows, (self._random(rows, k),), prepare),
            bytes=n * k * bits // 8 + 2 * n * k // 32 + item * rows * (k + n),
            operations=2 * rows * n * k,
            weights=f"int{bits}",
            baseline=False,
        )

    def _case(
        self,
        op: str,
        shape: str,
        rows: int,
        inputs: tuple[Tensor, ...],
        prepare: Callable[[ReferenceOps, tuple[Tensor, ...]], Callable[[], Tensor]],
        elements: int,
        **more: Any,
    ) -> Case:
        return Case(op, shape, rows, inputs, prepare, elements * self.dtype.itemsize, **more)

    def _integers(self, n: int, k: int, bits: int) -> IntegerMatrix:
        q = self._rng.integers(0, 1 << bits, (n, k), dtype=np.uint8)
        scales = self._rng.uniform(0.5, 1, (n, k // 32)).astype(np.float16) / (k**0.5 * (1 << bits))
        scales = scales.astype(np.float16).astype(np.float32)
        return IntegerMatrix(q, scales, bits=bits, zero=1 << (bits - 1))

    def _step(self, sequences: list[tuple[int, int]]) -> tuple[AttentionInputs, int]:
        inputs, num_blocks = attention_inputs(sequences)
        for field in ("positions", "slot_mapping", "block_tables", "query_start", "seq_lens"):
            setattr(inputs, field, getattr(inputs, field).to(self.device))
        return inputs, num_blocks

    def _random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        noise = torch.randn(shape, generator=self._generator, device=self.device)
        return noise.to(self.dtype if dtype is None else dtype)


class Held:
    """A matrix in memory. Implements `Matrix`."""

    def __init__(self, matrix: IntegerMatrix) -> None:
        self.matrix = matrix

    @property
    def shape(self) -> tuple[int, int]:
        n, k = self.matrix.q.shape
        return n, k

    @cached_property
    def values(self) -> Tensor:
        return torch.from_numpy(self.matrix.dense())

    def dense(self, dtype: torch.dtype) -> Tensor:
        return self.values.to(dtype)

    def integers(self) -> Iterator[IntegerMatrix]:
        return iter([self.matrix])
