"""GGUF metadata -> ModelConfig.

The keys are those that llama.cpp's converter writes, and the defaults those that its loader
assumes where a key is missing.
"""

from __future__ import annotations

import math
from typing import Any

from pellucid.errors import ModelError
from pellucid.load import limits
from pellucid.load.experts import gguf_experts
from pellucid.load.fields import Fields, positive_numbers
from pellucid.load.gguf import GGUFFile
from pellucid.models.config import ModelConfig, RopeScaling

ARCHITECTURES = (
    *("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2"),
    *("qwen2moe", "qwen3moe", "olmoe"),  # Mixtral is a llama with experts
)

# llama.cpp's periods: one full-attention layer closes each group of so many.
_SLIDING_PERIOD = {"gemma2": 2, "gemma3": 6}
_SLIDING_DEFAULT = {"gemma2": 4096}

# The 27B models scale attention by hidden_size / num_heads instead of head_dim; a file does not say
# so, and llama.cpp knows them by their number of layers.
_WIDE_SCALE_LAYERS = {"gemma2": 46, "gemma3": 62}

# Control tokens that end a turn or a document, for files that name only one of several.
_END_TEXTS = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>"}
)
_CONTROL = 3  # token type


def parse_gguf_config(file: GGUFFile) -> ModelConfig:
    """The model that a GGUF file describes.

    Raises:
        ModelError: an unsupported architecture or feature, or a value out of range.
    """
    where = file.path.name
    architecture = Fields(file.metadata, where).text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{where}: architecture {architecture!r:.60} is not supported;"
            f" supported are {', '.join(ARCHITECTURES)}"
        )
    fields = Fields(file.metadata, where, prefix=f"{architecture}.")
    _refuse_parts(file)
    hidden = fields.integer("embedding_length", 1, limits.HIDDEN)
    heads = fields.integer("attention.head_count", 1, limits.HEADS)
    head_dim = fields.integer("attention.key_length", 1, limits.HEAD_DIM, hidden // heads)
    if fields.integer("attention.value_length", 1, limits.HEAD_DIM, head_dim) != head_dim:
        raise ModelError(f"{where}: keys and values of different head sizes are not supported")
    eps_key = "layer_norm_epsilon" if architecture == "gpt2" else "layer_norm_rms_epsilon"
    vocab_size = _vocab_size(file)
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=fields.integer("block_count", 1, limits.LAYERS),
        num_heads=heads,
        num_kv_heads=fields.integer("attention.head_count_kv", 1, limits.HEADS, heads),
        head_dim=head_dim,
        intermediate_size=fields.integer("feed_forward_length", 1, limits.HIDDEN),
        max_position=_max_position(fields),
        norm_eps=fields.number(f"attention.{eps_key}", 0.0, 1.0),
        tie_embeddings="output.weight" not in file.tensors,
        eos_token_ids=end_token_ids(file, vocab_size),
        bos_token_id=_token_id(Fields(file.metadata, where), "bos", vocab_size),
        **_rope(file, architecture, fields, head_dim),
        **_biases(file),
        **_family(architecture, fields, hidden, heads),
        **gguf_experts(architecture, fields),
    )


def end_token_ids(file: GGUFFile, vocab_size: int) -> tuple[int, ...]:
    """Ids that end an answer: the file's EOS, end of turn and end of message, and known texts."""
    fields = Fields(file.metadata, file.path.name)
    named = (_token_id(fields, kind, vocab_size) for kind in ("eos", "eot", "eom"))
    tokens = fields.items("tokenizer.ggml.tokens", limits.VOCAB)
    types = fields.items("tokenizer.ggml.token_type", limits.VOCAB)
    ends = (
        i
        for i, (text, kind) in enumerate(zip(tokens, types, strict=False))
        if kind == _CONTROL and isinstance(text, str) and text in _END_TEXTS and i < vocab_size
    )
    return tuple(sorted({i for i in named if i is not None}.union(ends)))


def _token_id(fields: Fields, kind: str, vocab_size: int) -> int | None:
    return fields.optional_integer(f"tokenizer.ggml.{kind}_token_id", 0, vocab_size - 1)


def _refuse_parts(file: GGUFFile) -> None:
    where = file.path.name
    if Fields(file.metadata, where).integer("split.count", 0, 1 << 16, 0) > 1:
        raise ModelError(
            f"{where} is one part of a split model; join the parts with `gguf-split --merge` first"
        )


def _vocab_size(file: GGUFFile) -> int:
    # The embedding's own height: some files pad it beyond the tokens they list.
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(
            f"{file.path.name} has no tensor token_embd.weight; is it a language model?"
        )
    if embedding.shape[0] > limits.VOCAB:
        raise ModelError(f"{file.path.name}: the vocabulary exceeds {limits.VOCAB} tokens")
    return embedding.shape[0]


def _max_position(fields: Fields) -> int:
    stated = fields.integer("context_length", 1, limits.POSITION)
    if fields.get("rope.scaling.type") != "yarn":
        return stated
    original = fields.integer("rope.scaling.original_context_length", 2, limits.POSITION, stated)
    factor = fields.number("rope.scaling.factor", 1.0, limits.ROPE_FACTOR)
    return max(stated, int(original * factor))


def _biases(file: GGUFFile) -> dict[str, Any]:
    tensors = file.tensors
    return {
        "attention_bias": "blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors,
        "attention_out_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


def _family(architecture: str, fields: Fields, hidden: int, heads: int) -> dict[str, Any]:
    """What an architecture implies without a key of its own, and its windows."""
    family: dict[str, Any] = {"qk_norm": architecture in ("qwen3", "gemma3", "qwen3moe", "olmoe")}
    family["attention_scale"] = fields.optional_number("attention.scale", 1e-6, 1e6)
    window = fields.integer(
        "attention.sliding_window", 0, limits.POSITION, _SLIDING_DEFAULT.get(architecture, 0)
    )
    family["sliding_window"] = window or None
    if architecture == "gpt2":
        family["activation"] = "gelu_tanh"
    if architecture in ("gemma2", "gemma3"):
        layers = fields.integer("block_count", 1, limits.LAYERS)
        family |= {
            "activation": "gelu_tanh",
            "embedding_scale": math.sqrt(hidden),
            "post_norms": True,
            "sliding_layers": _sliding_layers(architecture, fields, layers),
            "logits_softcap": _softcap(fields, "final_logit_softcapping", architecture, 30.0),
        }
        if _WIDE_SCALE_LAYERS[architecture] == layers and family["attention_scale"] is None:
            family["attention_scale"] = (hidden / heads) ** -0.5
    if architecture == "gemma2":
        cap = _softcap(fields, "attn_logit_softcapping", architecture, 50.0)
        family["attention_softcap"] = cap
    if architecture == "gemma3" and window:
        base = fields.number("rope.freq_base_swa", 1.0, limits.ROPE_BASE, 10_000.0)
        family["rope_theta_local"] = base
    return family


def _softcap(fields: Fields, key: str, architecture: str, default: float) -> float | None:
    cap = fields.number(key, 0.0, 1e6, default if architecture == "gemma2" else 0.0)
    return cap or None


def _sliding_layers(architecture: str, fields: Fields, layers: int) -> tuple[bool, ...]:
    key = "attention.sliding_window_pattern"
    pattern = fields.get(key, _SLIDING_PERIOD[architecture])
    if isinstance(pattern, list):
        if len(pattern) < layers or not all(type(item) is bool for item in pattern):
            raise fields.wrong(key, f"one flag for each of {layers} layers")
        return tuple(pattern[:layers])
    period = fields.integer(key, 1, limits.LAYERS, pattern)
    return tuple(layer % period < period - 1 for layer in range(layers))


def _rope(file: GGUFFile, architecture: str, fields: Fields, head_dim: int) -> dict[str, Any]:
    rotated = fields.integer("rope.dimension_count", 2, head_dim, head_dim)
    if architecture == "llama" and rotated != head_dim:
        # Its interleaved rows could not be reordered into halves.
        raise fields.wrong("rope.dimension_count", f"the size of a head, {head_dim}")
    return {
        "rope_theta": fields.number("rope.freq_base", 1.0, limits.ROPE_BASE, 10_000.0),
        "partial_rotary": rotated / head_dim,
        "rope_scaling": _rope_scaling(file, fields, rotated),
    }


def _rope_scaling(file: GGUFFile, fields: Fields, rotated: int) -> RopeScaling | None:
    if "rope_factors_long.weight" in file.tensors:
        return _longrope(file, fields, rotated)
    # Before scaling had a type there was only this factor.
    linear = fields.number("rope.scale_linear", 1.0, limits.ROPE_FACTOR, 1.0)
    kind = fields.text("rope.scaling.type", "linear")
    if kind == "none":
        return None
    factor = fields.number("rope.scaling.factor", 1.0, limits.ROPE_FACTOR, linear)
    if kind == "linear":
        return RopeScaling("linear", factor=factor) if factor != 1.0 else None
    if kind == "yarn":
        return _yarn(fields, factor)
    raise fields.wrong("rope.scaling.type", "none, linear, yarn or, with its tensors, longrope")


def _yarn(fields: Fields, factor: float) -> RopeScaling:
    if fields.number("rope.scaling.yarn_ext_factor", -1e6, 1e6, 1.0) not in (1.0, -1.0):
        raise fields.wrong("rope.scaling.yarn_ext_factor", "1 (others are not supported)")
    # llama.cpp multiplies its own YaRN magnitude by attn_factor.
    extra = fields.number("rope.scaling.attn_factor", 1e-6, 1e6, 1.0)
    extra = fields.number("rope.scaling.yarn_attn_factor", 1e-6, 1e6, extra)
    context = fields.integer("context_length", 1, limits.POSITION)
    return RopeScaling(
        "yarn",
        factor=factor,
        original_max_position=fields.integer(
            "rope.scaling.original_context_length", 2, limits.POSITION, context
        ),
        attention_factor=extra * (0.1 * math.log(factor) + 1.0),
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 0.0, 1e6, 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 0.0, 1e6, 1.0),
    )


def _longrope(file: GGUFFile, fields: Fields, rotated: int) -> RopeScaling:
    context = fields.integer("context_length", 1, limits.POSITION)
    original = fields.integer("rope.scaling.original_context_length", 2, limits.POSITION, context)
    return RopeScaling(
        "longrope",
        factor=context / original,
        original_max_position=original,
        attention_factor=fields.number("rope.scaling.attn_factor", 1e-6, 1e6, 1.0),
        short_factor=_factors(file, "rope_factors_short.weight", rotated),
        long_factor=_factors(file, "rope_factors_long.weight", rotated),
    )


def _factors(file: GGUFFile, name: str, rotated: int) -> tuple[float, ...]:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.ggml_type != "F32" or tensor.shape != (rotated // 2,):
        raise ModelError(f"{file.path.name}: tensor {name} must hold {rotated // 2} F32 factors")
    factors: list[float] = tensor.raw.view("<f4")[0].tolist()
    if not positive_numbers(factors):
        raise ModelError(f"{file.path.name}: tensor {name} must hold numbers above 0")
    return tuple(factors)
