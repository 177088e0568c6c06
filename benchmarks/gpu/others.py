"""Beside it: transformers and vLLM on the same shape, where they are installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
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


def vllm(context: Context) -> None:
    """nano-vllm's workload by vLLM, whose weights are as random, from a folder with a config."""
    try:
        import vllm as package
    except Exception as error:  # it may be there and still not fit torch or the driver
        context.keep("absent", f"{type(error).__name__}: {error}"[:500])
        return
    context.keep("version", package.__version__)
    config = models.TINY if context.tiny else models.QWEN3_06B
    context.attempt("dummy weights", lambda: _by_vllm(package, context, config))


def _by_vllm(package: Any, context: Context, config: models.ModelConfig) -> dict[str, Any]:
    prompts, answers = workload(config.vocab_size, tiny=context.tiny)
    with TemporaryDirectory() as folder:
        _hf_config(config, context.dtype).save_pretrained(folder)
        begin = time.monotonic()
        engine = package.LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype=str(context.dtype).removeprefix("torch."),
            max_model_len=max(map(len, prompts)) + max(answers),
            max_num_seqs=len(prompts),
            enable_prefix_caching=False,
            seed=0,
        )

        def run(lengths: list[int]) -> int:
            sampling = [
                package.SamplingParams(
                    temperature=0.6, ignore_eos=True, max_tokens=length, detokenize=False
                )
                for length in lengths
            ]
            given = [{"prompt_token_ids": prompt} for prompt in prompts]
            outputs = engine.generate(given, sampling, use_tqdm=False)
            return sum(len(output.outputs[0].token_ids) for output in outputs)

        run([4] * len(prompts))
        ready = time.monotonic()
        brought = run(answers)
        seconds = time.monotonic() - ready
    return {
        "output_tokens": brought,
        "of": sum(answers),
        "seconds": seconds,
        "start_seconds": ready - begin,  # loading, compiling, capturing and a short run
        "output_tokens_per_s": brought / seconds,
    }


def _hf_config(config: models.ModelConfig, dtype: torch.dtype) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
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
        dtype=dtype,
    )


def _made(context: Context, config: models.ModelConfig, **more: str) -> Any:
    from transformers import AutoModelForCausalLM

    shape = _hf_config(config, context.dtype)
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
