"""Which weights a model has: canonical names and shapes. No torch.

Canonical names and layouts are those of Hugging Face's checkpoints with everything unfused:
projections are [out, in], and a norm's weight is what it multiplies by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from pellucid.models.config import ModelConfig

Shape = tuple[int, ...]


def weight_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every weight that a model of this config has, by canonical name, in order of use."""
    pairs = _gpt2_shapes(config) if config.architecture == "gpt2" else _decoder_shapes(config)
    shapes = dict(pairs)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


def count_parameters(config: ModelConfig) -> int:
    """The numbers in all of these weights."""
    return sum(math.prod(shape) for shape in weight_shapes(config).values())


def _decoder_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config.post_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for norm in norms:
            yield f"{prefix}{norm}.weight", (hidden,)
        yield from _attention(config, f"{prefix}self_attn.")
        if config.qk_norm:
            yield f"{prefix}self_attn.q_norm.weight", (config.norm_size(config.num_heads),)
            yield f"{prefix}self_attn.k_norm.weight", (config.norm_size(config.num_kv_heads),)
        if config.is_sparse(layer):
            yield from _sparse_mlp(config, f"{prefix}mlp.")
        else:
            yield from _gated_mlp(f"{prefix}mlp.", hidden, inner, config.mlp_bias)
    yield "model.norm.weight", (hidden,)


def _gpt2_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    yield "transformer.wte.weight", (config.vocab_size, hidden)
    yield "transformer.wpe.weight", (config.max_position, hidden)
    for layer in range(config.num_layers):
        prefix = f"transformer.h.{layer}."
        yield from _layer_norm(f"{prefix}ln_1", hidden)
        yield from _attention(config, f"{prefix}attn.")
        yield from _layer_norm(f"{prefix}ln_2", hidden)
        yield from _projection(f"{prefix}mlp.up_proj", inner, hidden, config.mlp_bias)
        yield from _projection(f"{prefix}mlp.down_proj", hidden, inner, config.mlp_bias)
    yield from _layer_norm("transformer.ln_f", hidden)


def _attention(config: ModelConfig, prefix: str) -> Iterator[tuple[str, Shape]]:
    hidden = config.hidden_size
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for part, size in (("q", query), ("k", kv), ("v", kv)):
        yield from _projection(f"{prefix}{part}_proj", size, hidden, config.attention_bias)
    yield from _projection(f"{prefix}o_proj", hidden, query, config.attention_out_bias)


def _gated_mlp(prefix: str, hidden: int, inner: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    for name in ("gate_proj", "up_proj"):
        yield from _projection(f"{prefix}{name}", inner, hidden, bias)
    yield from _projection(f"{prefix}down_proj", hidden, inner, bias)


def _sparse_mlp(config: ModelConfig, prefix: str) -> Iterator[tuple[str, Shape]]:
    hidden = config.hidden_size
    yield f"{prefix}gate.weight", (config.num_experts, hidden)
    if config.shared_expert_size:
        yield f"{prefix}shared_expert_gate.weight", (1, hidden)
        shared = config.shared_expert_size
        yield from _gated_mlp(f"{prefix}shared_expert.", hidden, shared, config.mlp_bias)
    for expert in range(config.num_experts):
        name = f"{prefix}experts.{expert}."
        yield from _gated_mlp(name, hidden, config.expert_size, bias=False)


def _projection(name: str, out: int, inner: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (out, inner)
    if bias:
        yield f"{name}.bias", (out,)


def _layer_norm(name: str, size: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)
