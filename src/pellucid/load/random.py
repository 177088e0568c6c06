"""Models of random weights, in the shapes of known ones: speed without a download."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from pellucid.errors import ConfigError
from pellucid.load.weights import Weights
from pellucid.models.config import ModelConfig
from pellucid.models.shapes import weight_shapes

TABLE = 1_048_573  # numbers that are drawn; a prime, so that no two rows of a matrix are equal

# What the config.json of each model says.
SHAPES = {
    "tiny": ModelConfig(
        architecture="llama", vocab_size=512, hidden_size=128, num_layers=4, num_heads=4,
        num_kv_heads=2, head_dim=32, intermediate_size=256, max_position=2048, tie_embeddings=True,
    ),
    "smollm2-135m": ModelConfig(
        architecture="llama", vocab_size=49152, hidden_size=576, num_layers=30, num_heads=9,
        num_kv_heads=3, head_dim=64, intermediate_size=1536, max_position=8192, norm_eps=1e-5,
        rope_theta=1e5, tie_embeddings=True,
    ),
    "qwen3-0.6b": ModelConfig(
        architecture="qwen3", vocab_size=151936, hidden_size=1024, num_layers=28, num_heads=16,
        num_kv_heads=8, head_dim=128, intermediate_size=3072, max_position=40960, rope_theta=1e6,
        qk_norm=True, tie_embeddings=True,
    ),
    "llama3.2-1b": ModelConfig(
        architecture="llama", vocab_size=128256, hidden_size=2048, num_layers=16, num_heads=32,
        num_kv_heads=8, head_dim=64, intermediate_size=8192, max_position=131072, norm_eps=1e-5,
        rope_theta=5e5, tie_embeddings=True,
    ),
    "qwen2.5-7b": ModelConfig(
        architecture="qwen2", vocab_size=152064, hidden_size=3584, num_layers=28, num_heads=28,
        num_kv_heads=4, head_dim=128, intermediate_size=18944, max_position=32768, rope_theta=1e6,
        attention_bias=True,
    ),
    "llama3-8b": ModelConfig(
        architecture="llama", vocab_size=128256, hidden_size=4096, num_layers=32, num_heads=32,
        num_kv_heads=8, head_dim=128, intermediate_size=14336, max_position=8192, norm_eps=1e-5,
        rope_theta=5e5,
    ),
    "qwen3-8b": ModelConfig(
        architecture="qwen3", vocab_size=151936, hidden_size=4096, num_layers=36, num_heads=32,
        num_kv_heads=8, head_dim=128, intermediate_size=12288, max_position=40960, rope_theta=1e6,
        qk_norm=True,
    ),
    "tiny-moe": ModelConfig(
        architecture="qwen3moe", vocab_size=512, hidden_size=128, num_layers=4, num_heads=4,
        num_kv_heads=2, head_dim=32, intermediate_size=256, max_position=2048, qk_norm=True,
        num_experts=16, experts_per_token=4, expert_size=64, normalise_experts=True,
        tie_embeddings=True,
    ),
    "olmoe-1b-7b": ModelConfig(
        architecture="olmoe", vocab_size=50304, hidden_size=2048, num_layers=16, num_heads=16,
        num_kv_heads=16, head_dim=128, intermediate_size=1024, max_position=4096, norm_eps=1e-5,
        qk_norm=True, qk_norm_whole=True, num_experts=64, experts_per_token=8, expert_size=1024,
    ),
    "qwen3-30b-a3b": ModelConfig(
        architecture="qwen3moe", vocab_size=151936, hidden_size=2048, num_layers=48, num_heads=32,
        num_kv_heads=4, head_dim=128, intermediate_size=6144, max_position=40960, rope_theta=1e6,
        qk_norm=True, num_experts=128, experts_per_token=8, expert_size=768,
        normalise_experts=True,
    ),
}  # fmt: skip


def named_shape(name: str) -> ModelConfig:
    """The config of a known model. Raises ConfigError for a name that is not in SHAPES."""
    if name not in SHAPES:
        raise ConfigError(f"--shape: {name!r} is none of {', '.join(SHAPES)}", param="shape")
    return SHAPES[name]


class RepeatedNoise(Weights):
    """Weights that are one short table of normal numbers over and over, in a scale that works.

    Kernels cannot tell, and drawing billions of numbers would take longer than measuring. They are
    made on `device`; in another dtype they are the same numbers, rounded.
    """

    def __init__(self, config: ModelConfig, device: torch.device | None = None) -> None:
        super().__init__(weight_shapes(config))
        table = torch.randn(TABLE, generator=torch.Generator().manual_seed(0))
        self._table = table.to(device or torch.device("cpu"))

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        shape = self.shape(name)
        count = torch.Size(shape).numel()
        start = zlib.crc32(name.encode()) % TABLE
        times = -(-(start + count) // TABLE)
        if len(shape) == 2:
            numbers = self._table / math.sqrt(shape[-1])
        else:
            numbers = self._table * 0.1 + (0.0 if name.endswith(".bias") else 1.0)  # a norm's is 1
        return numbers.to(dtype).repeat(times)[start : start + count].clone().view(shape)

    def close(self) -> None:
        """There is no file."""
