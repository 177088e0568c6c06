"""One decoder for Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, Phi-3, and their kin with experts.

They are the same network, the one that `base.py` draws; `ModelConfig` says which of a few
variations a model has:

- biases on the q, k, v projections (Qwen 2), or RMS norms on q and k (Qwen 3, Gemma 3)
- a sliding window on all layers (Mistral, Phi-3) or on some (Gemma), with its own rotary base
- norms also on what attention and MLP put out, and a scaled embedding (Gemma)
- soft caps on attention scores and logits (Gemma 2)
- a mixture of experts in place of the MLP, in all layers or some (Mixtral, Qwen2-MoE, Qwen3-MoE,
  OLMoE, whose norms on q and k span all heads)
"""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, KVLayer
from pellucid.kernels.reference import ReferenceOps
from pellucid.layers.adapters import Adapters
from pellucid.layers.attention import Attention
from pellucid.layers.embedding import LMHead, TokenEmbedding
from pellucid.layers.loading import Loader, WeightSource
from pellucid.layers.mlp import GatedMLP
from pellucid.layers.moe import SparseMLP
from pellucid.layers.norm import RMSNorm
from pellucid.layers.rope import RopeTable
from pellucid.models.base import Model
from pellucid.models.config import ModelConfig


class DecoderLayer:
    """Attention and MLP, each behind a norm; Gemma norms what they put out as well."""

    def __init__(self, loader: Loader, config: ModelConfig, index: int, rope: RopeTable) -> None:
        name = f"model.layers.{index}"

        def norm(which: str) -> RMSNorm:
            return RMSNorm(loader, f"{name}.{which}", config.hidden_size, config.norm_eps)

        self.window = config.window(index)
        self.attention_norm = norm("input_layernorm")
        self.attention = Attention(loader, config, f"{name}.self_attn", rope, self.window)
        self.attention_post_norm: RMSNorm | None = None
        mlp = SparseMLP if config.is_sparse(index) else GatedMLP
        self.mlp = mlp(loader, config, f"{name}.mlp")
        self.mlp_post_norm: RMSNorm | None = None
        if config.post_norms:
            self.attention_post_norm = norm("post_attention_layernorm")
            self.mlp_norm = norm("pre_feedforward_layernorm")
            self.mlp_post_norm = norm("post_feedforward_layernorm")
        else:
            self.mlp_norm = norm("post_attention_layernorm")  # after attention, before the MLP

    def __call__(
        self, update: Tensor, x: Tensor | None, inputs: AttentionInputs, kv: KVLayer
    ) -> tuple[Tensor, Tensor]:
        """See `base.Layer`."""
        normed, x = self.attention_norm.add(update, x)
        update = self.attention(normed, inputs, kv)
        if self.attention_post_norm is not None:
            update = self.attention_post_norm(update)

        normed, x = self.mlp_norm.add(update, x)
        update = self.mlp(normed)
        if self.mlp_post_norm is not None:
            update = self.mlp_post_norm(update)
        return update, x


class Decoder(Model):
    """The layers between a token embedding and the head, which may share its weight."""

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightSource,
        ops: ReferenceOps,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int,
        adapters: Adapters | None = None,
    ) -> None:
        loader = Loader(weights, ops, dtype, device, adapters)
        vocab, hidden = config.vocab_size, config.hidden_size
        self.config = config
        self.ops = ops
        self.adapters = adapters
        self.embedding = TokenEmbedding(
            loader, "model.embed_tokens", vocab, hidden, config.embedding_scale
        )
        full, sliding = _rope_tables(loader, config, max_model_len)
        self.layers = [
            DecoderLayer(loader, config, index, full if config.window(index) is None else sliding)
            for index in range(config.num_layers)
        ]
        self.final_norm = RMSNorm(loader, "model.norm", hidden, config.norm_eps)
        self.lm_head = LMHead.load(loader, config, self.embedding)

    def embed(self, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, None]:
        """The embedding is the first update to an empty stream."""
        return self.embedding(token_ids), None

    @property
    def expert_bytes(self) -> int:
        mlps = [layer.mlp for layer in self.layers if isinstance(layer, DecoderLayer)]
        return sum(mlp.experts.nbytes for mlp in mlps if isinstance(mlp, SparseMLP))


def _rope_tables(
    loader: Loader, config: ModelConfig, max_model_len: int
) -> tuple[RopeTable, RopeTable]:
    """The rotations of full and of sliding layers, which differ in Gemma 3 alone."""
    factors = None
    if "rope_freqs.weight" in loader.source.names():
        pairs = round(config.head_dim * config.partial_rotary) // 2
        factors = loader.tensor("rope_freqs.weight", (pairs,), torch.float32)
    full = RopeTable.build(config, max_model_len, loader.device, freq_factors=factors)
    if config.rope_theta_local is None:
        return full, full
    return full, RopeTable.build(config, max_model_len, loader.device, local=True)
