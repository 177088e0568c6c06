"""GPT-2: learned positions, layer norms with bias, a plain MLP (Radford et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, KVLayer
from pellucid.kernels.reference import ReferenceOps
from pellucid.layers.adapters import Adapters
from pellucid.layers.attention import Attention
from pellucid.layers.embedding import Embedding, LMHead, TokenEmbedding
from pellucid.layers.linear import Linear, SummedLinear
from pellucid.layers.loading import Loader, WeightSource
from pellucid.layers.norm import LayerNorm
from pellucid.models.base import Model
from pellucid.models.config import ModelConfig


class GPT2Layer:
    """Attention and MLP, each behind a layer norm."""

    def __init__(self, loader: Loader, config: ModelConfig, index: int) -> None:
        name = f"transformer.h.{index}"
        hidden, inner = config.hidden_size, config.intermediate_size
        self.ops = loader.ops
        self.window = config.window(index)
        self.tanh_gelu = config.activation == "gelu_tanh"
        self.attention_norm = LayerNorm(loader, f"{name}.ln_1", hidden, config.norm_eps)
        self.attention = Attention(loader, config, f"{name}.attn", None, self.window)
        self.mlp_norm = LayerNorm(loader, f"{name}.ln_2", hidden, config.norm_eps)
        self.up = Linear.load(loader, [f"{name}.mlp.up_proj"], [inner], hidden, config.mlp_bias)
        self.down = SummedLinear.load(
            loader, [f"{name}.mlp.down_proj"], [hidden], inner, config.mlp_bias
        )

    def __call__(
        self, update: Tensor, x: Tensor | None, inputs: AttentionInputs, kv: KVLayer
    ) -> tuple[Tensor, Tensor]:
        """See `base.Layer`."""
        normed, x = self.attention_norm.add(update, x)
        update = self.attention(normed, inputs, kv)
        normed, x = self.mlp_norm.add(update, x)
        return self.down(self.ops.gelu(self.up(normed), self.tanh_gelu)), x


class GPT2(Model):
    """The layers between token and position embeddings and the head."""

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightSource,
        ops: ReferenceOps,
        dtype: torch.dtype,
        device: torch.device,
        adapters: Adapters | None = None,
    ) -> None:
        loader = Loader(weights, ops, dtype, device, adapters)
        hidden = config.hidden_size
        self.config = config
        self.ops = ops
        self.adapters = adapters
        self.tokens = TokenEmbedding(loader, "transformer.wte", config.vocab_size, hidden)
        self.positions = Embedding(loader, "transformer.wpe", config.max_position, hidden)
        self.layers = [GPT2Layer(loader, config, index) for index in range(config.num_layers)]
        self.final_norm = LayerNorm(loader, "transformer.ln_f", hidden, config.norm_eps)
        self.lm_head = LMHead.load(loader, config, self.tokens)

    def embed(self, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """A token's vector is the first update to that of its position."""
        return self.tokens(token_ids), self.positions(positions)
