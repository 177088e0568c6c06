"""The ops with Triton's kernels where there are any, and plain torch for the rest.

Importing this needs Triton; see `kernels.triton` for what the kernels promise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, KVLayer, Matrix, Weight
from pellucid.kernels.reference import ReferenceOps
from pellucid.kernels.triton import activation, attention_plan, dense, norm, product, rope
from pellucid.kernels.triton.thresholds import Thresholds
from pellucid.kernels.triton.weights import StackedWeight, pack
from pellucid.kernels.triton_replay import plan_unseen


class TritonOps(ReferenceOps):
    """Ops that compute at once, on a GPU. What `thresholds` finds too small is left to torch."""

    name = "triton"

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = Thresholds.current() if thresholds is None else thresholds
        self.weight_bytes = 0

    def pack(self, parts: Sequence[Matrix], dtype: torch.dtype, device: torch.device) -> Weight:
        """Quantised parts keep their integers; a stack of dense ones is one dense tensor."""
        weight = pack(parts, dtype, device)
        if weight is None:
            dense = super().pack(parts, dtype, device)
            self.weight_bytes += dense.nbytes
            return dense
        self.weight_bytes += weight.nbytes
        return weight

    def embedding(self, token_ids: Tensor, table: Weight, scale: float = 1.0) -> Tensor:
        if not isinstance(table, StackedWeight):
            return super().embedding(token_ids, table, scale)
        rows = table.rows(token_ids)
        return rows if scale == 1.0 else rows * scale

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        if not isinstance(weight, StackedWeight):
            return self._dense(x, weight, bias)
        out = torch.empty((len(x), weight.n), dtype=x.dtype, device=x.device)
        begin, height = 0, self.thresholds.product_rows
        for piece in weight.pieces:
            part = slice(begin, begin + len(piece))
            piece_bias = None if bias is None else bias[part]
            if isinstance(piece, Tensor):
                out[:, part] = self._dense(x, piece, piece_bias)
            else:
                product.integer_product(x, piece, piece_bias, out[:, part], height)
            begin += len(piece)
        return out

    def logits(self, x: Tensor, weight: Weight) -> Tensor:
        if isinstance(weight, StackedWeight):
            (piece,) = weight.pieces  # a head stands alone
            if isinstance(piece, Tensor):
                return self.logits(x, piece)
            out = torch.empty((len(x), len(piece)), dtype=torch.float32, device=x.device)
            product.integer_product(x, piece, None, out, self.thresholds.product_rows)
            return out
        if x.dtype != weight.dtype or weight.shape[1] < self.thresholds.head:
            return super().logits(x, weight)
        # Products of 16-bit floats are exact in float32, in which they are added.
        return self._product(x, weight, None, torch.float32)

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.dtype != weight.dtype or weight.shape[1] < self.thresholds.dense:
            return super().linear(x, weight, bias)
        return self._product(x, weight, bias, x.dtype)

    def _product(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        out = torch.empty((len(x), len(weight)), dtype=dtype, device=x.device)
        tall = self.thresholds.dense_rows == dense.TALL_ROWS
        dense.dense_product(x, weight, bias, out, tall)
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if x.shape[-1] < self.thresholds.rms_norm:
            return super().rms_norm(x, weight, eps)
        return norm.rms_norm(x, weight, eps)

    def add_rms_norm(
        self, update: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if residual is None or update.shape[-1] < self.thresholds.rms_norm:
            return super().add_rms_norm(update, residual, weight, eps)
        return norm.add_rms_norm(update, residual, weight, eps)

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
        if q.shape[-1] < self.thresholds.rope:
            return super().rope_and_write_kv(q, k, v, cos, sin, inputs, kv)
        return rope.rope_and_write_kv(q, k, v, cos, sin, inputs, kv)

    def plan_attention(
        self,
        inputs: AttentionInputs,
        kv: KVLayer,
        num_heads: int,
        windows: Sequence[int | None] = (None,),
    ) -> object:
        _, _, num_kv_heads, head_dim = kv.k.shape
        if head_dim < self.thresholds.attention:
            return super().plan_attention(inputs, kv, num_heads, windows)
        plan = plan_unseen if inputs.context_limit else attention_plan.plan
        return plan(inputs, attention_plan.Heads(num_heads, num_kv_heads, head_dim), windows)

    def paged_attention(
        self,
        q: Tensor,
        kv: KVLayer,
        inputs: AttentionInputs,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        if q.shape[-1] < self.thresholds.attention:
            return super().paged_attention(q, kv, inputs, scale, window, softcap)
        return attention_plan.attend(q, kv, inputs, scale, window, softcap)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        if gate_up.shape[1] // 2 < self.thresholds.gated:
            return super().silu_mul(gate_up)
        return activation.gated_activation(gate_up, activation.SILU)

    def gelu_mul(self, gate_up: Tensor, approximate: bool) -> Tensor:
        if gate_up.shape[1] // 2 < self.thresholds.gated:
            return super().gelu_mul(gate_up, approximate)
        kind = activation.GELU_TANH if approximate else activation.GELU
        return activation.gated_activation(gate_up, kind)
