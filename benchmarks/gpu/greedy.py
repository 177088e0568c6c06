"""Greedy tokens by Triton in 16 bits against the reference in float32, up to close calls.

The reference answers some prompts. Each other way is then given the whole of prompt and answer at
once, and has to agree on every next token: so one close call does not decide the ones behind it. A
disagreement counts where the reference's two likeliest tokens are further apart than MARGIN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import models
from benchmarks.gpu.context import Context
from pellucid.kernels.interface import AttentionInputs, KVLayer, allocate_kv
from pellucid.kernels.reference import ReferenceOps
from pellucid.models.base import Model

PROMPTS, PROMPT, ANSWER = 16, 24, 64
BLOCK_SIZE = 16
# Of log probabilities between the two likeliest: what rounding activations to 16 bits may turn
# over. bfloat16 keeps 8 bits of each, float16 11.
MARGIN = {torch.bfloat16: 0.5, torch.float16: 0.1, torch.float32: 1e-3}


def greedy(context: Context) -> None:
    """Each dtype and choice of kernels in turn; weights of `--model`, else random ones."""
    prompts, prompt, answer = (2, 4, 4) if context.tiny else (PROMPTS, PROMPT, ANSWER)
    config = _config(context)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (prompts, prompt), generator=generator)
    model = _made(context, ReferenceOps(), torch.float32)
    sequences = _continued(model, tokens.to(context.device), answer)
    expected = _logits(model, torch.float32, sequences, prompt)
    del model
    context.keep("weights", context.model.name if context.model else "random")
    for dtype in (torch.float32,) if context.tiny else (torch.bfloat16, torch.float16):
        every = {"triton": context.triton(), "dense=1": context.triton(dense=1)}
        for name, ops in (every | {"reference": ReferenceOps()}).items():
            if ops is not None:
                context.attempt(
                    f"{name} {dtype}",
                    lambda ops=ops, dtype=dtype: compared(
                        expected,
                        _logits(_made(context, ops, dtype), dtype, sequences, prompt),
                        MARGIN[dtype],
                    ),
                )


def compared(expected: Tensor, found: Tensor, margin: float) -> dict[str, Any]:
    """How far the greedy choices agree.

    Args:
        expected: the reference's logits [n, vocab] float32.
        found: likewise, of what is judged.
        margin: of log probabilities; a choice between nearer tokens may fall either way.
    """
    best = expected.topk(2)
    gaps = best.values[:, 0] - best.values[:, 1]
    differ = found.argmax(1) != best.indices[:, 0]
    beyond = differ & (gaps > margin)
    return {
        "tokens": len(expected),
        "disagree": int(differ.sum()),
        "disagree beyond margin": int(beyond.sum()),
        "margin": margin,
        "close calls": int((gaps <= margin).sum()),
        "largest gap of a disagreement": float(gaps[differ].max()) if differ.any() else 0.0,
        "error": float((found - expected).norm() / expected.norm()),
        "ok": bool(found.isfinite().all()) and not beyond.any().item(),
    }


def _config(context: Context) -> models.ModelConfig:
    if context.model is None:
        return models.TINY if context.tiny else models.QWEN3_06B
    from pellucid.load.model_config import load_config

    return load_config(models.gguf(context.model))


def _made(context: Context, ops: ReferenceOps, dtype: torch.dtype) -> Model:
    """Random weights are drawn from one seed: the same numbers, rounded to each dtype."""
    config = _config(context)
    if context.model is None:
        source: Any = models.DeviceWeights(config, context.device)
        return models.build_model(config, source, ops, dtype, context.device)
    from pellucid.load.weights import open_weights

    weights = open_weights(models.gguf(context.model), config)
    try:
        source = FromIntegers(weights)
        return models.build_model(config, source, ops, dtype, context.device)
    finally:
        weights.close()


class FromIntegers:
    """Weights whose dense values are made from their integers: the gguf package need not be here.

    Implements `WeightSource`.
    """

    def __init__(self, weights: Any) -> None:
        self._weights = weights

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weights, name)

    def get(self, name: str, dtype: torch.dtype) -> Tensor:
        parts = self._weights.integers(name)
        if parts is None:
            found: Tensor = self._weights.get(name, dtype)
            return found
        return torch.cat([torch.from_numpy(part.dense()).to(dtype) for part in parts])


@torch.no_grad()
def _continued(model: Model, tokens: Tensor, count: int) -> Tensor:
    """Greedy answers behind the prompts [n, length], computed anew for every token."""
    for _ in range(count):
        last = _logits(model, torch.float32, tokens, tokens.shape[1])
        tokens = torch.cat((tokens, last.argmax(1)[:, None]), dim=1)
    return tokens


@torch.no_grad()
def _logits(model: Model, dtype: torch.dtype, sequences: Tensor, first: int) -> Tensor:
    """[n, vocab] of every position from the one before `first` to the last but one, or the last.

    Sequences [n, length] are one step of n prompts. Where `first` is their length, only the logits
    behind the last token are computed.
    """
    count, length = sequences.shape
    inputs, kv = _step(model, dtype, count, length, sequences.device)
    hidden = model.forward(sequences.reshape(-1), inputs, kv).view(count, length, -1)
    end = length if first == length else length - 1
    return model.logits(hidden[:, first - 1 : end].reshape(-1, hidden.shape[-1]))


def _step(
    model: Model, dtype: torch.dtype, count: int, length: int, device: torch.device
) -> tuple[AttentionInputs, list[KVLayer]]:
    """A step of whole prompts, each in blocks of its own, and an empty pool for it."""
    config, width = model.config, -(-length // BLOCK_SIZE)
    positions = torch.arange(length, device=device).repeat(count)
    sequence = torch.arange(count, device=device).repeat_interleave(length)
    tables = torch.arange(count * width, dtype=torch.int32, device=device).view(count, width)
    inputs = AttentionInputs(
        positions=positions,
        slot_mapping=sequence * width * BLOCK_SIZE + positions,
        block_tables=tables,
        query_start=torch.arange(count + 1, dtype=torch.int32, device=device) * length,
        seq_lens=torch.full((count,), length, dtype=torch.int32, device=device),
        query_lens_list=[length] * count,
        seq_lens_list=[length] * count,
    )
    kv = allocate_kv(
        *(config.num_layers, count * width, BLOCK_SIZE),
        *(config.num_kv_heads, config.head_dim, dtype, device),
    )
    return inputs, kv
