"""Where each file format keeps the canonical weights of `models/shapes.py`, and in which form.

Rotary halves are split ("rotate_half") in every canonical weight. The tables below say how a
format differs from canonical; `weights.py` does what they say.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

from pellucid.models.config import ModelConfig

ROPE_FREQS = "rope_freqs.weight"

_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)_proj")


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a file keeps a canonical weight, and what must be undone to get it."""

    name: str
    rows: slice | None = None  # its part of a fused projection's output rows
    expert: int | None = None  # its part of a stack [experts, out, in]
    squeezed: bool = False  # one row, kept as a vector
    interleaved_heads: int = 0  # rows of so many heads stand in interleaved rotary order
    transposed: bool = False  # kept [in, out], as GPT-2's Conv1D does
    plus_one: bool = False  # Gemma keeps w where the norm multiplies by 1 + w


# ---- GGUF

_GGUF_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
}
_GGUF_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "attn.o_proj": "attn_output",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
}
# With four norms per layer the one after attention has a name of its own.
_GGUF_POST_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_location(name: str, config: ModelConfig, present: Container[str] = ()) -> Stored:
    """Where a GGUF file that holds the tensors `present` keeps canonical weight `name`."""
    layer, module, kind = _split(name)
    if layer is None:
        return Stored(f"{_GGUF_TOP[module]}.{kind}")
    prefix = f"blk.{layer}."
    if expert := _EXPERT.fullmatch(module):
        apart = f"{prefix}ffn_{expert[2]}.{expert[1]}.{kind}"  # before there were stacks
        if apart in present:
            return Stored(apart)
        return Stored(f"{prefix}ffn_{expert[2]}_exps.{kind}", expert=int(expert[1]))
    projection = module.rpartition(".")[2]
    if config.architecture in ("phi3", "gpt2") and projection in ("q_proj", "k_proj", "v_proj"):
        return Stored(f"{prefix}attn_qkv.{kind}", rows=_qkv_rows(projection, config))
    if config.architecture == "phi3" and projection in ("gate_proj", "up_proj"):
        return Stored(f"{prefix}ffn_up.{kind}", rows=_gate_up_rows(projection, config))
    heads = 0
    if config.architecture == "llama":
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(projection, 0)
    renamed = _GGUF_POST_NORMS.get(module) if config.post_norms else None
    return Stored(
        f"{prefix}{renamed or _GGUF_LAYER[module]}.{kind}",
        interleaved_heads=heads,
        squeezed=module == "mlp.shared_expert_gate",
    )


# ---- Hugging Face

_GPT2_CONV1D = {
    "attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}


_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}


def hf_location(name: str, config: ModelConfig, present: Container[str] = ()) -> Stored:
    """Where a Hugging Face checkpoint keeps canonical weight `name`, before its own prefix.

    `present` are the names that it holds.
    """
    layer, module, kind = _split(name)
    stem = name.removesuffix(f"{module}.{kind}")
    if expert := _EXPERT.fullmatch(module):
        return _hf_expert(name, stem, int(expert[1]), expert[2], config, present)
    if module == "mlp.gate" and config.architecture == "mixtral" and name not in present:
        return Stored(f"{stem}block_sparse_moe.gate.{kind}")
    projection = module.rpartition(".")[2]
    if config.architecture == "gpt2" and layer is not None and projection.endswith("_proj"):
        transposed = kind == "weight"
        if module in _GPT2_CONV1D:
            return Stored(f"{stem}{_GPT2_CONV1D[module]}.{kind}", transposed=transposed)
        rows = _qkv_rows(projection, config)
        return Stored(f"{stem}attn.c_attn.{kind}", rows=rows, transposed=transposed)
    if config.architecture == "phi3" and projection in ("q_proj", "k_proj", "v_proj"):
        return Stored(f"{stem}self_attn.qkv_proj.{kind}", rows=_qkv_rows(projection, config))
    if config.architecture == "phi3" and projection in ("gate_proj", "up_proj"):
        return Stored(f"{stem}mlp.gate_up_proj.{kind}", rows=_gate_up_rows(projection, config))
    gemma = config.architecture in ("gemma2", "gemma3")
    return Stored(name, plus_one=gemma and projection.endswith("norm"))


def _hf_expert(
    name: str, stem: str, expert: int, part: str, config: ModelConfig, present: Container[str]
) -> Stored:
    """Stacks are what transformers 5 keeps in memory; published files have a tensor for each."""
    if part == "down" and f"{stem}mlp.experts.down_proj" in present:
        return Stored(f"{stem}mlp.experts.down_proj", expert=expert)
    both = f"{stem}mlp.experts.gate_up_proj"
    if part != "down" and both in present:
        inner = config.expert_size
        rows = slice(0, inner) if part == "gate" else slice(inner, 2 * inner)
        return Stored(both, rows=rows, expert=expert)
    if config.architecture == "mixtral":
        return Stored(f"{stem}block_sparse_moe.experts.{expert}.{_MIXTRAL[part]}.weight")
    return Stored(name)


def _split(name: str) -> tuple[str | None, str, str]:
    """model.layers.3.mlp.up_proj.weight -> "3", "mlp.up_proj", "weight"; no layer at the top."""
    module, _, kind = name.rpartition(".")
    for prefix in ("model.layers.", "transformer.h."):
        if module.startswith(prefix):
            layer, _, module = module.removeprefix(prefix).partition(".")
            return layer, module, kind
    return None, module, kind


def _qkv_rows(projection: str, config: ModelConfig) -> slice:
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    start, size = {"q_proj": (0, query), "k_proj": (query, kv), "v_proj": (query + kv, kv)}[
        projection
    ]
    return slice(start, start + size)


def _gate_up_rows(projection: str, config: ModelConfig) -> slice:
    inner = config.intermediate_size
    return slice(0, inner) if projection == "gate_proj" else slice(inner, 2 * inner)
