"""The bits of an answer do not depend on its company, nor on how it was cut into steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pellucid.kernels.reference import ReferenceOps
from pellucid.models.base import Model
from pellucid.models.config import ModelConfig, RopeScaling
from pellucid.models.registry import build_model, random_weights
from tests.models.stepping import Stepper, logits, random_tokens

LENGTH = 300  # beyond one partition of 256

BASE = {
    "vocab_size": 61,
    "hidden_size": 48,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 12,
    "intermediate_size": 72,
    "max_position": 512,
}
CONFIGS = {
    "llama": ModelConfig(architecture="llama", **BASE, tie_embeddings=True),
    "qwen2": ModelConfig(architecture="qwen2", **BASE, attention_bias=True),
    "gemma": ModelConfig(
        architecture="gemma2",
        **BASE,
        activation="gelu_tanh",
        qk_norm=True,
        post_norms=True,
        sliding_window=33,
        sliding_layers=(True, False),
        attention_softcap=5.0,
        logits_softcap=5.0,
        embedding_scale=48**0.5,
        rope_theta_local=100.0,
        rope_scaling=RopeScaling("linear", factor=2.0),
    ),
    "mixture": ModelConfig(
        architecture="qwen2moe",
        **BASE,
        attention_bias=True,
        qk_norm=True,
        qk_norm_whole=True,
        num_experts=7,
        experts_per_token=2,
        expert_size=40,
        shared_expert_size=24,
        sparse_layers=(False, True),
    ),
    "gpt2": ModelConfig(
        architecture="gpt2",
        **{**BASE, "num_heads": 4, "num_kv_heads": 4},
        activation="gelu_tanh",
        attention_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
    ),
}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest, dtype: torch.dtype) -> Model:
    config = CONFIGS[request.param]
    weights = random_weights(config, seed=1)
    return build_model(config, weights, ReferenceOps(), dtype, torch.device("cpu"))


@pytest.fixture
def tokens() -> list[int]:
    return random_tokens(LENGTH, BASE["vocab_size"])


@pytest.fixture
def expected(model: Model, tokens: list[int], dtype: torch.dtype) -> Tensor:
    """Logits of every position when the sequence is fed at once, alone."""
    return logits(model, tokens, dtype)


@pytest.mark.parametrize("size", [7, 64])
def test_chunked(
    model: Model, tokens: list[int], expected: Tensor, dtype: torch.dtype, size: int
) -> None:
    stepper = Stepper(model, [tokens], dtype)
    for start in range(0, LENGTH, size):
        count = min(size, LENGTH - start)
        assert torch.equal(stepper.step({0: count})[0], expected[start : start + count])


def test_token_by_token(
    model: Model, tokens: list[int], expected: Tensor, dtype: torch.dtype
) -> None:
    stepper = Stepper(model, [tokens], dtype)
    stepper.step({0: LENGTH - 60})
    for position in range(LENGTH - 60, LENGTH):
        assert torch.equal(stepper.step({0: 1})[0], expected[position : position + 1])


def test_in_company(model: Model, tokens: list[int], expected: Tensor, dtype: torch.dtype) -> None:
    """Others decode, prefill, come and go, before and behind it in the step."""
    others = [random_tokens(LENGTH, BASE["vocab_size"], seed) for seed in range(1, 20)]
    stepper = Stepper(model, [*others[:1], tokens, *others[1:]], dtype)
    start = 0
    for number, count in enumerate([1, 30, 1, 100, 9, 1, 1, 120, 37]):
        counts = {0: 30} if number % 2 else {}
        counts[1] = count
        counts |= dict.fromkeys(range(2, 3 + 2 * number), 1 + number % 3)
        results = dict(zip(counts, stepper.step(counts), strict=True))
        assert torch.equal(results[1], expected[start : start + count])
        start += count
    assert start == LENGTH
