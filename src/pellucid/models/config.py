"""The shape of a model, whatever file it came from.

Ours, not `transformers`': a parser that one can read, that drifts with nobody, and that costs no
import time. `load/` fills it from a Hugging Face config.json or from GGUF metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh", "gelu"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    kind "linear" (Chen et al. 2023), "dynamic" (NTK-aware), "llama3" (Llama 3.1), "yarn" (Peng et
    al. 2023), "longrope" (Phi-3 128k: one factor per frequency).
    """

    kind: Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    attention_factor: float | None = None  # yarn, longrope: scales cos and sin
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn
    short_factor: tuple[float, ...] = ()  # longrope
    long_factor: tuple[float, ...] = ()  # longrope


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything the decoder needs to know. Flags describe behaviour, never a model's name."""

    architecture: str  # one of models.registry.ARCHITECTURES
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position: int
    norm_eps: float = 1e-6
    activation: Activation = "silu"
    tie_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    # rotary embedding (unused by gpt2)
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rope_theta_local: float | None = None  # gemma3: sliding layers use this base, unscaled
    partial_rotary: float = 1.0  # share of head_dim that is rotated

    # attention
    attention_bias: bool = False  # q, k, v projections have a bias
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm on q and k per head (qwen3, gemma3)
    qk_norm_whole: bool = False  # ... but over all heads at once (olmoe)
    attention_scale: float | None = None  # default head_dim ** -0.5
    sliding_window: int | None = None  # tokens a query sees, itself included
    sliding_layers: tuple[bool, ...] = ()  # per layer; empty: all layers if sliding_window is set
    attention_softcap: float | None = None  # gemma2
    logits_softcap: float | None = None  # gemma2

    # gemma
    embedding_scale: float | None = None  # sqrt(hidden_size)
    post_norms: bool = False  # a second norm after attention and after the MLP

    # mixture of experts, if there are any
    num_experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0  # of each, as intermediate_size is that of layers without experts
    shared_expert_size: int = 0  # of the one that works on all tokens; 0: there is none (qwen2moe)
    normalise_experts: bool = False  # shares of the chosen experts add up to one
    sparse_layers: tuple[bool, ...] = ()  # which layers have experts; empty: all

    def is_sparse(self, layer: int) -> bool:
        """Whether `layer` has experts instead of one MLP."""
        return self.num_experts > 0 and (not self.sparse_layers or self.sparse_layers[layer])

    def norm_size(self, heads: int) -> int:
        """What a norm of q or k spans, of so many `heads`."""
        return heads * self.head_dim if self.qk_norm_whole else self.head_dim

    def window(self, layer: int) -> int | None:
        """Sliding window of `layer`, None for full attention."""
        if self.sliding_window is None:
            return None
        if self.sliding_layers and not self.sliding_layers[layer]:
            return None
        return self.sliding_window

    @property
    def plain_keys(self) -> bool:
        """Keys are what a projection gives: no bias or norm makes them large and alike."""
        return not (self.attention_bias or self.qk_norm)

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale
