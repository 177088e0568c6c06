"""Beside it: transformers on the same shape, where it is installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu import models
from benchmarks.gpu.context import Context
from benchmarks.gpu.wholes import workload
from pellucid.kernels.gpu import synchronize


def transformers(context: Context) -> None:
    """Static cache and compiled, batch 1; then continuous batching on nano-vllm's workload."""
    config = models.TINY if context.tiny else models.QWEN3_06B
    context.attempt("static cache, compiled", lambda: _static(context, _made(context, config)))
    if context.device.type == "cuda":
        context.attempt("continuous batching", lambda: _continuous(context, config))


def _made(context: Context, config: models.ModelConfig, **more: str) -> Any:
    from transformers import AutoModelForCausalLM, Qwen3Config

    shape = Qwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position,
        tie_word_embeddings=config.tie_embeddings,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device(context.device):
        return AutoModelForCausalLM.from_config(shape, dtype=context.dtype, **more).eval()


def _static(context: Context, model: Any) -> dict[str, float]:
    length = 4 if context.tiny else 64
    ids = torch.ones(1, length, dtype=torch.int64, device=context.device)
    compiled = {} if context.tiny else {"cache_implementation": "static"}

    def generate(count: int) -> Callable[[], object]:
        return lambda: model.generate(
            ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, **compiled
        )

    for _ in range(2):  # compiles
        generate(2 * length)()
    # Two lengths: what they differ by is decoding alone.
    whole, half = (_seconds(context, generate(count)) for count in (2 * length, length))
    return {"decode_tokens_per_s": length / (whole - half), "seconds": whole}


def _continuous(context: Context, config: models.ModelConfig) -> dict[str, Any]:
    from transformers import GenerationConfig

    model = _made(context, config, attn_implementation="sdpa")
    prompts, answers = workload(config.vocab_size, tiny=context.tiny)
    # It takes one length for all: the mean of those that are drawn.
    mean = sum(answers) // len(answers)
    sampled = {"do_sample": True, "temperature": 0.6, "pad_token_id": 0}
    settings = GenerationConfig(max_new_tokens=mean, **sampled)

    def run() -> Any:
        return model.generate_batch(inputs=prompts, generation_config=settings, progress_bar=False)

    begin = time.monotonic()
    outputs = run()
    seconds = time.monotonic() - begin
    brought = sum(len(output.generated_tokens) for output in outputs.values())
    return {
        "output_tokens": brought,
        "seconds": seconds,
        "output_tokens_per_s": brought / seconds,
    }


def _seconds(context: Context, work: Callable[[], object]) -> float:
    synchronize(context.device)
    begin = time.monotonic()
    work()
    synchronize(context.device)
    return time.monotonic() - begin
