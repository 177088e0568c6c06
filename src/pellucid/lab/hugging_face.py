"""The same weights under Hugging Face's transformers, where that is installed."""

from __future__ import annotations

import time
from typing import Any

import torch

from pellucid.lab.caches import Generation
from pellucid.layers.loading import WeightSource
from pellucid.models.config import ModelConfig


def obstacle(config: ModelConfig) -> str | None:
    """Why the model cannot be compared, None if it can."""
    if config.architecture != "llama" or config.rope_scaling is not None:
        return "transformers is compared on plain Llama models only"
    try:
        import transformers  # noqa: F401
    except ImportError:
        return "transformers is not installed (pip install transformers)"
    return None


def load(config: ModelConfig, weights: WeightSource, dtype: torch.dtype = torch.float32) -> Any:
    """A `LlamaForCausalLM` with these weights in `dtype`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rope: dict[str, Any] = {
        "rope_theta": config.rope_theta,  # transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},  # 5
    }
    settings = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position,
        rms_norm_eps=config.norm_eps,
        attention_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        tie_word_embeddings=config.tie_embeddings,
        **rope,
    )
    model: Any = LlamaForCausalLM(settings)
    model.eval().to(dtype)
    state = {name: weights.get(name, dtype) for name in weights.names()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    left = set(missing) - ({"lm_head.weight"} if config.tie_embeddings else set())
    if left or unexpected:
        raise ValueError(f"weights do not fit: {sorted(left)} missing, {unexpected} unknown")
    model.tie_weights()
    return model


@torch.inference_mode()
def generate(model: Any, prompt: list[int], num_tokens: int, *, use_cache: bool) -> Generation:
    """Greedy continuation; only the last position's logits are computed, as by ours."""
    known, past = list(prompt), None
    made = Generation([], [], [])
    for _ in range(num_tokens):
        begin = time.perf_counter()
        step = known[len(known) - 1 :] if past is not None else known
        output = model(
            input_ids=torch.tensor([step]),
            past_key_values=past,
            use_cache=use_cache,
            logits_to_keep=1,
        )
        past = output.past_key_values if use_cache else None
        token = int(output.logits[0, -1].argmax())
        made.seconds.append(time.perf_counter() - begin)
        made.positions.append(len(step))
        made.token_ids.append(token)
        known.append(token)
    return made


@torch.inference_mode()
def decode(
    model: Any, prompts: list[list[int]], num_tokens: int
) -> tuple[list[list[int]], list[float]]:
    """Greedy continuations of prompts of one length, as a batch with the default cache.

    Returns the new tokens of each, and the seconds since the beginning at which they were there.
    """
    begin = time.perf_counter()
    step, past = torch.tensor(prompts), None
    made, times = [], []
    for _ in range(num_tokens):
        output = model(input_ids=step, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = output.past_key_values
        step = output.logits[:, -1].argmax(-1, keepdim=True)
        made.append(step.flatten().tolist())
        times.append(time.perf_counter() - begin)
    return [list(row) for row in zip(*made, strict=True)], times
