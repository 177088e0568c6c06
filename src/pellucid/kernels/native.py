"""The C++ kernels for CPUs: a model's step is recorded once and replayed in one call.

Recording runs the model's own code on two dummy rows. Every op appends an instruction to a
`_native.Program` instead of computing; its operands are found by where their tensors lie, so that
views (split, view, flatten) need no instruction: they are columns of a buffer. What is recorded
holds for any number of rows, because rows are the first dimension of all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, Experts, KVLayer, Matrix
from pellucid.kernels.lora import LoraSlot
from pellucid.kernels.native_tape import ROWS, Tape
from pellucid.kernels.native_weights import NativeLoraSlot, NativeWeight, pack_matrices
from pellucid.kernels.reference import ReferenceOps

if TYPE_CHECKING:
    from pellucid import _native

MAX_HEAD_DIM = 256

Forward = Callable[[Tensor, AttentionInputs], Tensor]


def obstacle(device: torch.device) -> str | None:
    """Why the kernels cannot run on `device`, or None."""
    if device.type != "cpu":
        return f"they are for CPUs, not for {device.type}"
    try:
        from pellucid import _native
    except ImportError as error:
        return f"pellucid was installed without its C++ part ({error})"
    try:
        _native.isa()
    except RuntimeError as error:  # PELLUCID_ISA names what is not there
        return str(error)
    return None


def about() -> str:
    """What `doctor` says of kernels that run."""
    from pellucid import _native

    return f"ready, {_native.isa()}"


def head_dim_obstacle(head_dim: int) -> str | None:
    """Why attention cannot work on heads of this size, or None."""
    if head_dim % 16 == 0 and head_dim <= MAX_HEAD_DIM:
        return None
    return f"heads of {head_dim} are not a multiple of 16 up to {MAX_HEAD_DIM}"


def thread_team(threads: int) -> _native.ThreadTeam:
    """Threads that run programs, the caller's own among them."""
    from pellucid import _native

    return _native.ThreadTeam(threads)


def attention_arithmetic(dtype: torch.dtype) -> str:
    """What scores and weighted sums over a pool of `dtype` are computed in."""
    from pellucid import _native

    isa = _native.isa()
    if dtype == torch.bfloat16 and isa == "avx512bf16":
        return "bfloat16"
    return "int8" if dtype == torch.int8 and isa.startswith("avx512") else "float32"


def native_layout(pool: KVLayer) -> KVLayer:
    """A pool as the kernels keep it, under the same shapes and dtypes.

    What a head has in a block lies together: values as [num_blocks, G, block_size, D], scales as
    [num_blocks, G, block_size], keys as [num_blocks, G, words of D, block_size] in 32-bit words, of
    which each holds 1, 2 or 4 neighbouring components. The pool of a model is written and read by
    the kernels alone.
    """

    def by_head(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.transpose(1, 2).contiguous().view(part.shape)

    words = pool.k.contiguous().view(torch.int32).permute(0, 2, 3, 1).contiguous()
    values = pool.v.transpose(1, 2).contiguous().view(pool.v.shape)
    keys = words.view(pool.k.dtype).view(pool.k.shape)
    return KVLayer(keys, values, by_head(pool.k_scale), by_head(pool.v_scale))


class NativeOps(ReferenceOps):
    """Ops that record. They compute nothing: `record` a model, then run the program."""

    name = "native"
    lora_slot = NativeLoraSlot

    def __init__(self) -> None:
        self.weight_bytes = 0
        self._tape: Tape | None = None

    def activation_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float32

    def pack(
        self, parts: Sequence[Matrix], dtype: torch.dtype, device: torch.device
    ) -> NativeWeight:
        weight = pack_matrices(parts, dtype)
        self.weight_bytes += weight.nbytes
        return weight

    def record(self, forward: Forward, max_rows: int) -> _native.Program:
        """The program of `forward`, which maps token ids [T] and their places to rows of output.

        The program takes steps of up to `max_rows` tokens. It refers to the weights and to the KV
        pool that `forward` uses, and keeps them alive.

        Raises:
            ValueError: an op of the model is not one that the kernels have.
        """
        token_ids, inputs = torch.zeros(ROWS, dtype=torch.int64), _dummy_inputs()
        with self._recording(Tape(token_ids, inputs.positions)) as tape:
            output = forward(token_ids, inputs)
            tape.program.finalize(tape.columns(output), max_rows)
        return tape.program

    @contextmanager
    def _recording(self, tape: Tape) -> Iterator[Tape]:
        self._tape = tape
        try:
            yield tape
        finally:
            self._tape = None

    @property
    def tape(self) -> Tape:
        if self._tape is None:
            raise RuntimeError("native ops only record: see NativeOps.record")
        return self._tape

    # ---- ops, in the order of ReferenceOps

    def embedding(self, token_ids: Tensor, table: NativeWeight, scale: float = 1.0) -> Tensor:
        tape = self.tape
        out = tape.new(table.k)
        tape.program.embedding(tape.columns(out), table.table, scale, tape.index(token_ids))
        return out

    def linear(self, x: Tensor, weight: NativeWeight, bias: Tensor | None = None) -> Tensor:
        tape = self.tape
        out = tape.new(weight.n)
        sizes = [piece.n for piece in weight.pieces]
        biases: Sequence[Tensor | None] = [None] * len(sizes)
        if bias is not None:
            biases = torch.split(bias, sizes)
        parts = torch.split(out, sizes, dim=1)
        for part, piece, piece_bias in zip(parts, weight.pieces, biases, strict=True):
            tape.program.linear(tape.columns(part), tape.columns(x), piece, piece_bias)
        return out

    def add_lora(self, y: Tensor, x: Tensor, slot: LoraSlot) -> Tensor:
        if not isinstance(slot, NativeLoraSlot):
            raise TypeError("the slot is not one of these ops")
        tape = self.tape
        tape.program.lora(tape.columns(y), tape.columns(x), slot.table)  # in place
        return y

    def logits(self, x: Tensor, weight: NativeWeight) -> Tensor:
        return self.linear(x, weight)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        tape = self.tape
        out = tape.new(x[0].numel())
        tape.program.rms_norm(tape.columns(out), tape.columns(x), weight, eps)
        return out.view(x.shape)

    def add_rms_norm(
        self, update: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        tape = self.tape
        out, total = tape.new(update.shape[1]), tape.new(update.shape[1])
        tape.program.add_rms_norm(*tape.adding(out, total, update, residual), weight, eps)
        return out, total

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        tape = self.tape
        out = tape.new(x[0].numel())
        tape.program.layer_norm(tape.columns(out), tape.columns(x), weight, bias, eps)
        return out.view(x.shape)

    def add_layer_norm(
        self,
        update: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        tape = self.tape
        out, total = tape.new(update.shape[1]), tape.new(update.shape[1])
        tape.program.add_layer_norm(*tape.adding(out, total, update, residual), weight, bias, eps)
        return out, total

    def rope_and_write_kv(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        inputs: AttentionInputs,
        kv: KVLayer,
    ) -> Tensor:
        tape = self.tape
        out = tape.new(q[0].numel())
        tape.program.rope_and_write_kv(
            *(tape.columns(out), tape.columns(q), tape.columns(k), tape.columns(v)),
            *(cos, sin, tape.pool(kv)),
        )
        return out.view(q.shape)

    def write_kv(self, k: Tensor, v: Tensor, inputs: AttentionInputs, kv: KVLayer) -> None:
        tape = self.tape
        tape.program.write_kv(tape.columns(k), tape.columns(v), tape.pool(kv))

    def plan_attention(
        self,
        inputs: AttentionInputs,
        kv: KVLayer,
        num_heads: int,
        windows: Sequence[int | None] = (None,),
    ) -> object:
        """Nothing: a program plans each of its runs itself."""
        return self.tape

    def paged_attention(
        self,
        q: Tensor,
        kv: KVLayer,
        inputs: AttentionInputs,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        tape = self.tape
        out = tape.new(q[0].numel())
        tape.program.paged_attention(
            tape.columns(out), tape.columns(q), tape.pool(kv), scale, window, softcap
        )
        return out.view(q.shape)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        tape = self.tape
        out = tape.new(gate_up.shape[1] // 2)
        tape.program.silu_mul(tape.columns(out), tape.columns(gate_up))
        return out

    def gelu_mul(self, gate_up: Tensor, approximate: bool) -> Tensor:
        tape = self.tape
        out = tape.new(gate_up.shape[1] // 2)
        tape.program.gelu_mul(tape.columns(out), tape.columns(gate_up), approximate)
        return out

    def gelu(self, x: Tensor, approximate: bool) -> Tensor:
        tape = self.tape
        out = tape.new(x.shape[1])
        tape.program.gelu(tape.columns(out), tape.columns(x), approximate)
        return out

    def experts(
        self, x: Tensor, scores: Tensor, experts: Experts, shared: Tensor | None = None
    ) -> Tensor:
        tape = self.tape
        out = tape.new(x.shape[1])
        tape.program.experts(
            *(tape.columns(out), tape.columns(x), tape.columns(scores)),
            gate=[weight.table for weight in experts.gate],
            up=[weight.table for weight in experts.up],
            down=[weight.table for weight in experts.down],
            top_k=experts.top_k,
            normalise=experts.normalise,
            activation=experts.activation,
            shared=None if shared is None else tape.columns(shared),
        )
        return out

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        tape = self.tape
        out = tape.new(x.shape[1])
        tape.program.softcap(tape.columns(out), tape.columns(x), cap)
        return out


def _dummy_inputs() -> AttentionInputs:
    """What the model passes on, and no op looks into."""
    return AttentionInputs(
        positions=torch.arange(ROWS),
        slot_mapping=torch.arange(ROWS),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        query_start=torch.tensor([0, ROWS], dtype=torch.int32),
        seq_lens=torch.tensor([ROWS], dtype=torch.int32),
        query_lens_list=[ROWS],
        seq_lens_list=[ROWS],
    )
