"""What config.json and GGUF metadata say of a mixture of experts -> fields of ModelConfig.

Routers that are not a softmax over all experts (groups of experts, sigmoids, scaled shares, as
DeepSeek's have) are refused.
"""

from __future__ import annotations

from typing import Any

from pellucid.errors import ModelError
from pellucid.load import limits
from pellucid.load.fields import Fields

# Whether the shares of the chosen experts add up to one, where no key says so.
_NORMALISED = {"llama": True, "mixtral": True, "qwen3moe": True}
_SOFTMAX = 1  # GGUF's number of it

HF_DEFAULTS: dict[str, dict[str, Any]] = {
    "mixtral": {
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "qwen2moe": {
        "max_position_embeddings": 32_768,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4,
    },
    "qwen3moe": {
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 4,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
    },
    "olmoe": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "num_experts_per_tok": 8},
}
_HF_COUNTS = {"mixtral": 8, "qwen2moe": 60, "qwen3moe": 128, "olmoe": 64}


def hf_experts(architecture: str, fields: Fields, num_layers: int) -> dict[str, Any]:
    """The experts of one of the architectures of `HF_DEFAULTS`; nothing for others.

    Raises:
        ModelError: an unsupported feature, or a value out of range.
    """
    if architecture not in HF_DEFAULTS:
        return {}
    if fields.get("clip_qkv") is not None:
        raise ModelError("config.json: clip_qkv is set, but clipped projections are not supported")
    if architecture in ("qwen2moe", "qwen3moe") and fields.flag("use_sliding_window"):
        raise ModelError(
            f"config.json: use_sliding_window is set, which is not supported for {architecture}"
        )
    size = "moe_intermediate_size" if architecture.startswith("qwen") else "intermediate_size"
    key = "num_experts" if "num_experts" in fields else "num_local_experts"
    count = fields.integer(key, 1, limits.EXPERTS, _HF_COUNTS[architecture])
    shared = 0
    if architecture == "qwen2moe":
        shared = fields.integer("shared_expert_intermediate_size", 1, limits.HIDDEN)
    normalise = fields.flag("norm_topk_prob") if architecture != "mixtral" else True
    return {
        "num_experts": count,
        "experts_per_token": fields.integer("num_experts_per_tok", 1, count),
        "expert_size": fields.integer(size, 1, limits.HIDDEN),
        "shared_expert_size": shared,
        "normalise_experts": normalise,
        "sparse_layers": _sparse_layers(fields, num_layers),
        "qk_norm_whole": architecture == "olmoe",
    }


def _sparse_layers(fields: Fields, num_layers: int) -> tuple[bool, ...]:
    """Every `decoder_sparse_step`th layer, but for `mlp_only_layers`."""
    step = fields.integer("decoder_sparse_step", 1, limits.LAYERS, 1)
    dense = fields.items("mlp_only_layers", limits.LAYERS)
    if not all(type(layer) is int for layer in dense):
        raise fields.wrong("mlp_only_layers", "a list of layers")
    sparse = tuple((layer + 1) % step == 0 and layer not in dense for layer in range(num_layers))
    return () if all(sparse) else sparse


def gguf_experts(architecture: str, fields: Fields) -> dict[str, Any]:
    """The experts of a GGUF file; nothing if it has none.

    Raises:
        ModelError: an unsupported feature, or a value out of range.
    """
    count = fields.integer("expert_count", 0, limits.EXPERTS, 0)
    if architecture not in ("llama", "qwen2moe", "qwen3moe", "olmoe"):
        if count:
            raise fields.wrong("expert_count", f"0: {architecture} has no experts here")
        return {}
    if architecture != "llama" and not count:
        raise fields.wrong("expert_count", f"an integer from 1 to {limits.EXPERTS}")
    if not count:
        return {}
    _refuse_other_routers(fields)
    used = fields.integer("expert_used_count", 1, count)
    whole = fields.integer("feed_forward_length", 1, limits.HIDDEN)
    default = max(1, whole // used) if architecture.startswith("qwen") else whole
    shared = 0
    if architecture == "qwen2moe":
        key = "expert_shared_feed_forward_length"
        shared = fields.integer(key, 1, limits.HIDDEN, whole)
    return {
        "num_experts": count,
        "experts_per_token": used,
        "expert_size": fields.integer("expert_feed_forward_length", 1, limits.HIDDEN, default),
        "shared_expert_size": shared,
        "normalise_experts": fields.flag(
            "expert_weights_norm", _NORMALISED.get(architecture, False)
        ),
        "qk_norm_whole": architecture == "olmoe",
    }


def _refuse_other_routers(fields: Fields) -> None:
    if fields.integer("expert_gating_func", 0, 1 << 16, _SOFTMAX) not in (0, _SOFTMAX):
        raise fields.wrong("expert_gating_func", f"{_SOFTMAX}, a softmax (others: not supported)")
    if fields.integer("expert_group_count", 0, 1 << 16, 0) > 1:
        raise fields.wrong("expert_group_count", "at most 1: groups of experts are not supported")
    if fields.number("expert_weights_scale", -1e9, 1e9, 1.0) not in (0.0, 1.0):
        raise fields.wrong("expert_weights_scale", "1 (others are not supported)")
    if fields.number("attention.clamp_kqv", -1e9, 1e9, 0.0) != 0.0:
        raise fields.wrong("attention.clamp_kqv", "0: clipped projections are not supported")
