"""Tiny random checkpoints of every architecture, as Hugging Face folders and as GGUF files.

`make_hf` builds one with transformers and saves it; `write_gguf` writes the same model the way
llama.cpp's converter defines it: names from the `gguf` package's own map, q and k rows of the llama
architecture permuted, Gemma's norms plus one, GPT-2's Conv1D transposed. Nothing of pellucid is
used, so that both can be the oracle of its loaders.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2")
SPARSE = ("mixtral", "qwen2moe", "qwen3moe", "olmoe")
ARCHITECTURES = (*DENSE, *SPARSE)

COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32},
    "gemma3": {
        "head_dim": 32,
        "sliding_window": 8,
        "query_pre_attn_scalar": 32,
        "num_hidden_layers": 7,  # the sixth layer is the first with full attention
    },
    "phi3": {"sliding_window": 8, "original_max_position_embeddings": 32},
    "gpt2": {},
    "mixtral": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2moe": {
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    },
    "qwen3moe": {
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 32},
}
GPT2_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
}
CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "phi3": ("Phi3Config", "Phi3ForCausalLM"),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    "qwen2moe": ("Qwen2MoeConfig", "Qwen2MoeForCausalLM"),
    "qwen3moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM"),
}

# Ready-made `rope_parameters`, for heads of 16.
ROPE: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
    },
}


def make_hf(
    arch: str, folder: Path, *, seed: int = 0, max_shard_size: str = "1GB", **overrides: Any
) -> Any:
    """Save a random model of `arch` to `folder`; returns the transformers model, in eval mode.

    `overrides` go to the config, in the names of Llama's for every architecture.
    """
    settings = {**COMMON, **OWN[arch], **overrides}
    if arch == "gpt2":
        settings.pop("num_key_value_heads", None)
        settings = {GPT2_KEYS.get(key, key): value for key, value in settings.items()}
    config_name, model_name = CLASSES[arch]
    config = getattr(transformers, config_name)(**settings, attn_implementation="eager")
    torch.manual_seed(seed)
    model = getattr(transformers, model_name)(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Norms and biases start as ones and zeros, which would hide every mix-up.
            weight.normal_(0.0, 0.2)
            if weight.dim() == 1 and name.endswith("weight") and "gemma" not in arch:
                weight += 1.0
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def write_gguf(
    hf_folder: Path,
    path: Path,
    quant: gguf.GGMLQuantizationType | None = None,
    metadata: dict[str, Any] | None = None,
    stacked: bool = True,
) -> None:
    """Convert a folder of `make_hf` to `path`; matrices whose rows allow it become `quant`.

    `metadata` adds keys, or replaces those that the conversion wrote. Unless `stacked`, each
    expert has tensors of its own, as in files from before there were stacks.
    """
    config = json.loads((hf_folder / "config.json").read_text())
    arch = config["model_type"].removesuffix("_text").replace("_moe", "moe")
    arch = "llama" if arch in ("mistral", "mixtral") else arch
    writer = gguf.GGUFWriter(path, arch)
    head_dim = _write_metadata(writer, arch, config)
    _write_rope(writer, arch, config, head_dim)
    for key, value in (metadata or {}).items():
        writer.kv_data[0][key] = gguf.GGUFValue(value, gguf.GGUFValueType.get_type(value))
    layers = config.get("num_hidden_layers") or config["n_layer"]
    model_arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    name_map = gguf.get_tensor_name_map(model_arch, layers)
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(hf_folder.glob("*.safetensors")):
        tensors |= load_file(shard)
    for name, data in _stacked(tensors).items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        new_name = name_map.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new_name is not None, name
        if "_exps" in new_name and not stacked:
            for e, part in enumerate(data):
                _write_tensor(writer, new_name.replace("_exps", f".{e}"), part, quant)
            continue
        _write_tensor(writer, new_name, _converted(arch, name, data, config), quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _stacked(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each projection of all of a layer's experts as one tensor [experts, out, in]."""
    found: dict[str, dict[int, np.ndarray]] = {}
    others = {}
    for name, data in tensors.items():
        if match := re.fullmatch(r"(.*\.experts)\.(\d+)\.(.*)", name):
            found.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = data
        else:
            others[name] = data.squeeze()
    stacks = {name: np.stack([parts[e] for e in sorted(parts)]) for name, parts in found.items()}
    return others | stacks


def _write_metadata(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> int:
    get = {key: config.get(key, config.get(GPT2_KEYS.get(key, key))) for key in COMMON}
    heads, hidden = get["num_attention_heads"], get["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    writer.add_block_count(get["num_hidden_layers"])
    writer.add_context_length(get["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(get["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_vocab_size(get["vocab_size"])
    writer.add_bos_token_id(get["bos_token_id"])
    writer.add_eos_token_id(get["eos_token_id"])
    if arch == "gpt2":
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return head_dim
    writer.add_head_count_kv(get["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _write_experts(writer, config)
    if arch in ("qwen3", "gemma2", "gemma3", "qwen3moe"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch in ("gemma2", "gemma3", "phi3"):
        writer.add_sliding_window(config["sliding_window"] or 0)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    return head_dim


def _write_experts(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    count = config.get("num_experts") or config.get("num_local_experts")
    if not count:
        return
    writer.add_expert_count(count)
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        size = config["shared_expert_intermediate_size"]
        writer.add_expert_shared_feed_forward_length(size)


def _write_rope(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any], head_dim: int) -> None:
    if arch == "gpt2":
        return
    rope = config["rope_parameters"]
    if arch == "gemma3":
        assert rope["sliding_attention"]["rope_theta"] == 10_000.0, (
            "the converter has no key for it"
        )
        rope = rope["full_attention"]
    rotated = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    writer.add_rope_freq_base(rope["rope_theta"])
    if arch in ("llama", "phi3"):
        writer.add_rope_dimension_count(rotated)
    kind = rope["rope_type"]
    original = rope.get("original_max_position_embeddings")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(original)
    elif kind == "llama3":
        factors = _llama3_factors(rope, rotated)
        writer.add_tensor("rope_freqs.weight", factors)
    elif kind == "longrope":
        scale = config["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
        for length in ("long", "short"):
            factors = np.array(rope[f"{length}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)
    elif kind != "default":
        raise ValueError(f"llama.cpp's converter does not write rope type {kind!r}")


def _llama3_factors(rope: dict[str, Any], rotated: int) -> np.ndarray:
    """What each frequency is divided by (Llama 3.1)."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    factors = []
    for i in range(0, rotated, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / rotated)
        smooth = (original / wavelength - low) / (high - low)
        smooth = min(max(smooth, 0.0), 1.0)
        factors.append(1.0 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def _converted(arch: str, name: str, data: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    if arch == "llama" and ".q_proj." in name:
        return _permuted(data, config["num_attention_heads"])
    if arch == "llama" and ".k_proj." in name:
        return _permuted(data, config["num_key_value_heads"])
    if arch in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        return data + 1
    if arch == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return data.T
    return data


def _permuted(data: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of each head from split halves to interleaved pairs."""
    halves = data.reshape(num_heads, 2, -1, *data.shape[1:])
    return halves.swapaxes(1, 2).reshape(data.shape)


def _write_tensor(
    writer: gguf.GGUFWriter, name: str, data: np.ndarray, quant: gguf.GGMLQuantizationType | None
) -> None:
    data = np.ascontiguousarray(data, dtype=np.float32)
    is_kept = data.ndim < 2 or "ffn_gate_inp" in name  # routers, as llama.cpp keeps them
    if quant is None or is_kept or data.shape[-1] % gguf.GGML_QUANT_SIZES[quant][0]:
        writer.add_tensor(name, data)
    else:
        writer.add_tensor(name, gguf.quants.quantize(data, quant), raw_dtype=quant)
