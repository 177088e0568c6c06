"""A Hugging Face config.json -> ModelConfig.

Where a file leaves a key out, what holds is the default of the architecture's config class in
transformers; the tables here repeat the ones that published files rely on.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pellucid.errors import ModelError
from pellucid.load import limits
from pellucid.load.experts import HF_DEFAULTS, hf_experts
from pellucid.load.fields import Fields, read_json
from pellucid.load.hf_rope import parse_rope
from pellucid.models.config import Activation, ModelConfig

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",  # its text_config; images are not supported
    "Phi3ForCausalLM": "phi3",
    "MixtralForCausalLM": "mixtral",
    "Qwen2MoeForCausalLM": "qwen2moe",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "OlmoeForCausalLM": "olmoe",
    "GPT2LMHeadModel": "gpt2",
}

_GEMMA = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_QWEN = {"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28}
_DEFAULTS: dict[str, dict[str, Any]] = {
    **HF_DEFAULTS,
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131_072, "sliding_window": 4096},
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
    "gemma2": {
        **_GEMMA,
        "vocab_size": 256_000,
        "max_position_embeddings": 8192,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": {**_GEMMA, "vocab_size": 262_208, "max_position_embeddings": 131_072},
    "phi3": {
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    "gpt2": {
        "vocab_size": 50_257,
        "rms_norm_eps": 1e-5,
        "hidden_act": "gelu_new",
        "tie_word_embeddings": True,
    },
}

# GPT-2's config has names of its own.
_GPT2_KEYS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation_function": "hidden_act",
}

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

_EXPERTS = dict.fromkeys(("num_experts", "num_local_experts"), "experts in this architecture")

# Features that change the forward pass; a file that asks for one is refused, not half obeyed.
_REFUSED = {
    "quantization_config": "quantised Hugging Face checkpoints (use a GGUF file instead)",
    **_EXPERTS,
    "add_cross_attention": "cross-attention",
    "is_encoder_decoder": "encoder-decoder models",
    "scale_attn_by_inverse_layer_idx": "attention scaled by the layer's index",
    "use_bidirectional_attention": "bidirectional attention",
}


def parse_hf_config(folder: Path) -> ModelConfig:
    """The model that `folder`/config.json describes.

    Raises:
        ModelError: an unsupported architecture or feature, or a value out of range.
    """
    top = read_json(folder / "config.json")
    architecture = _architecture(top)
    fields = _merged(top, architecture)
    for key, feature in _REFUSED.items():
        if fields.get(key) and not (key in _EXPERTS and architecture in HF_DEFAULTS):
            raise ModelError(f"config.json: {key} is set, but {feature} are not supported")
    vocab_size = fields.integer("vocab_size", 1, limits.VOCAB)
    hidden = fields.integer("hidden_size", 1, limits.HIDDEN)
    heads = fields.integer("num_attention_heads", 1, limits.HEADS)
    inner = 4 * hidden if architecture == "gpt2" else None
    layers = fields.integer("num_hidden_layers", 1, limits.LAYERS)
    rope = parse_rope(fields, architecture)
    bos = _token_ids(fields, "bos_token_id", vocab_size)
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", 1, limits.HEADS, heads),
        head_dim=fields.integer("head_dim", 1, limits.HEAD_DIM, hidden // heads),
        intermediate_size=fields.integer("intermediate_size", 1, limits.HIDDEN, inner),
        max_position=rope.max_position,
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        activation=_activation(fields, architecture),
        tie_embeddings=fields.flag("tie_word_embeddings"),
        eos_token_ids=_end_token_ids(folder, fields, vocab_size),
        bos_token_id=bos[0] if bos else None,
        rope_theta=rope.theta,
        rope_theta_local=rope.theta_local,
        rope_scaling=rope.scaling,
        partial_rotary=rope.partial,
        **_attention(architecture, fields),
        **_window(architecture, fields),
        **_gemma(architecture, fields, hidden),
        **hf_experts(architecture, fields, layers),
    )


def _architecture(top: dict[str, Any]) -> str:
    names = Fields(top, "config.json").items("architectures", 16)
    known = [name for name in names if isinstance(name, str) and name in _ARCHITECTURES]
    if known:
        return _ARCHITECTURES[known[0]]
    own_code = " (and the Python code it brings along is never run)" if "auto_map" in top else ""
    raise ModelError(
        f"config.json: architecture {', '.join(map(str, names)) or 'unknown'!r:.60} is not"
        f" supported{own_code}; supported are {', '.join(sorted(_ARCHITECTURES))}"
    )


def _merged(top: dict[str, Any], architecture: str) -> Fields:
    """The file's own keys, the text part first, over the architecture's defaults."""
    text = top.get("text_config") or {}
    if not isinstance(text, dict):
        raise ModelError("config.json: text_config must be an object")
    values = {**top, **text}
    if architecture == "gpt2":
        values = {_GPT2_KEYS.get(key, key): value for key, value in values.items()}
    return Fields({**_DEFAULTS[architecture], **values}, "config.json")


def _activation(fields: Fields, architecture: str) -> Activation:
    gemma = architecture in ("gemma2", "gemma3")
    key, default = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
    name = fields.text(key, default)
    if name not in _ACTIVATIONS:
        raise fields.wrong(key, f"one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _attention(architecture: str, fields: Fields) -> dict[str, Any]:
    if architecture == "gpt2":
        scaled = fields.flag("scale_attn_weights", True)
        return {
            "attention_bias": True,
            "attention_out_bias": True,
            "mlp_bias": True,
            "attention_scale": None if scaled else 1.0,
        }
    bias = fields.flag("attention_bias")
    if architecture == "qwen2moe":
        bias = fields.flag("qkv_bias", True)
    qwen2 = architecture in ("qwen2", "qwen2moe")
    return {
        "attention_bias": bias or architecture == "qwen2",
        "attention_out_bias": bias and not qwen2,
        "mlp_bias": architecture == "llama" and fields.flag("mlp_bias"),
        "qk_norm": architecture in ("qwen3", "gemma3", "qwen3moe", "olmoe"),
    }


def _window(architecture: str, fields: Fields) -> dict[str, Any]:
    """Which layers attend to the last `sliding_window` tokens only."""
    if architecture in ("llama", "gpt2", "qwen2moe", "qwen3moe", "olmoe"):
        return {}
    window = fields.optional_integer("sliding_window", 1, limits.POSITION)
    if window is None:
        return {}
    if architecture in ("mistral", "mixtral", "phi3"):
        return {"sliding_window": window}
    qwen = architecture in ("qwen2", "qwen3")
    if qwen and not fields.flag("use_sliding_window"):
        return {}
    layers = fields.integer("num_hidden_layers", 1, limits.LAYERS)
    types = fields.items("layer_types", limits.LAYERS)
    if types:
        sliding = tuple(kind == "sliding_attention" for kind in types)
        known = all(kind in ("sliding_attention", "full_attention") for kind in types)
        if len(types) != layers or not known:
            raise fields.wrong("layer_types", f"sliding_ or full_attention for {layers} layers")
    elif qwen:
        first = fields.integer("max_window_layers", 0, limits.LAYERS)
        sliding = tuple(layer >= first for layer in range(layers))
    else:
        # gemma3 calls it a pattern; it is the distance between full-attention layers.
        period = fields.integer(
            "sliding_window_pattern", 1, limits.LAYERS, 2 if architecture == "gemma2" else 6
        )
        sliding = tuple((layer + 1) % period != 0 for layer in range(layers))
    return {"sliding_window": window, "sliding_layers": sliding} if any(sliding) else {}


def _gemma(architecture: str, fields: Fields, hidden: int) -> dict[str, Any]:
    if architecture not in ("gemma2", "gemma3"):
        return {}
    return {
        "attention_scale": fields.number("query_pre_attn_scalar", 1e-3, 1e9) ** -0.5,
        "attention_softcap": fields.optional_number("attn_logit_softcapping", 1e-3, 1e6),
        "logits_softcap": fields.optional_number("final_logit_softcapping", 1e-3, 1e6),
        "embedding_scale": math.sqrt(hidden),
        "post_norms": True,
    }


def _end_token_ids(folder: Path, fields: Fields, vocab_size: int) -> tuple[int, ...]:
    """EOS ids: those of generation_config.json, which is what generating goes by, if it has any."""
    path = folder / "generation_config.json"
    if path.is_file():
        generation = Fields(read_json(path), path.name)
        ids = _token_ids(generation, "eos_token_id", vocab_size)
        if ids:
            return ids
    return _token_ids(fields, "eos_token_id", vocab_size)


def _token_ids(fields: Fields, key: str, vocab_size: int) -> tuple[int, ...]:
    """One id or a list; those beyond the vocabulary can never come up and are left out."""
    value = fields.get(key, [])
    ids = value if isinstance(value, list) else [value]
    if len(ids) > 256 or not all(type(i) is int and i >= 0 for i in ids):
        raise fields.wrong(key, "a token id or a list of at most 256")
    return tuple(sorted({i for i in ids if i < vocab_size}))
