"""Attention over the paged KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, KVLayer
from pellucid.layers.linear import Linear, SummedLinear
from pellucid.layers.loading import Loader
from pellucid.layers.norm import RMSNorm
from pellucid.layers.rope import RopeTable
from pellucid.models.config import ModelConfig


class Attention:
    """Project, norm and rotate where the model does, write K and V, attend, project back."""

    def __init__(
        self,
        loader: Loader,
        config: ModelConfig,
        name: str,
        rope: RopeTable | None,
        window: int | None,
    ) -> None:
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        hidden = config.hidden_size
        self.ops = loader.ops
        self.rope = rope
        self.window = window
        self.head_dim = head_dim
        self.scale = config.scale
        self.softcap = config.attention_softcap
        self.sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        self.qkv = Linear.load(
            loader,
            [f"{name}.{part}_proj" for part in "qkv"],
            self.sizes,
            hidden,
            config.attention_bias,
        )
        self.out = SummedLinear.load(
            loader, [f"{name}.o_proj"], [hidden], heads * head_dim, config.attention_out_bias
        )
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if config.qk_norm:
            sizes = [config.norm_size(heads), config.norm_size(kv_heads)]
            self.q_norm = RMSNorm(loader, f"{name}.q_norm", sizes[0], config.norm_eps)
            self.k_norm = RMSNorm(loader, f"{name}.k_norm", sizes[1], config.norm_eps)

    def __call__(self, x: Tensor, inputs: AttentionInputs, kv: KVLayer) -> Tensor:
        """[T, hidden] -> [T, hidden]; stores this step's K and V in `kv` on the way."""
        q, k, v = torch.split(self.qkv(x), self.sizes, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = (norm(_parts(y, norm.size)) for norm, y in ((self.q_norm, q), (self.k_norm, k)))
        q, k, v = (_parts(y, self.head_dim) for y in (q, k, v))
        if self.rope is None:
            self.ops.write_kv(k, v, inputs, kv)
        else:
            q = self.ops.rope_and_write_kv(q, k, v, self.rope.cos, self.rope.sin, inputs, kv)
        mixed = self.ops.paged_attention(q, kv, inputs, self.scale, self.window, self.softcap)
        return self.out(mixed.flatten(1))


def _parts(x: Tensor, size: int) -> Tensor:
    """Rows as parts of `size`: [T, parts, size]."""
    return x.view(len(x), x.shape[1:].numel() // size, size)
