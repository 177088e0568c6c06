"""Which class runs an architecture, and models with random weights."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from pellucid.errors import ModelError
from pellucid.kernels.reference import ReferenceOps
from pellucid.layers.adapters import Adapters
from pellucid.layers.loading import WeightSource
from pellucid.models.base import Model
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.models.gpt2 import GPT2
from pellucid.models.shapes import weight_shapes

DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
SPARSE = ("mixtral", "qwen2moe", "qwen3moe", "olmoe")  # mixtures of experts
DECODERS = (*DENSE, *SPARSE)
ARCHITECTURES = (*DECODERS, "gpt2")


def build_model(
    config: ModelConfig,
    weights: WeightSource,
    ops: ReferenceOps,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int | None = None,
    max_lora_rank: int | None = None,
) -> Model:
    """Load a model, one weight at a time.

    `max_model_len` is the longest context to be served, the model's own limit by default. It sizes
    the rotary tables, and settles "dynamic" and "longrope" scaling (see `layers.rope`). With
    `max_lora_rank` its products leave room for adapters (`Model.adapters`).

    Raises:
        ModelError: an architecture that is not in `ARCHITECTURES`, or a weight that is missing or
            has a wrong shape.
    """
    adapters = None if max_lora_rank is None else Adapters(ops, max_lora_rank, dtype, device)
    length = config.max_position if max_model_len is None else max_model_len
    if config.architecture in DECODERS:
        return Decoder(config, weights, ops, dtype, device, length, adapters)
    if config.architecture == "gpt2":
        return GPT2(config, weights, ops, dtype, device, adapters)
    known = ", ".join(ARCHITECTURES)
    raise ModelError(f"architecture {config.architecture!r} is not supported (only {known})")


class RandomWeights:
    """Weights drawn from (seed, name), in a scale that keeps activations of order one."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._shapes = weight_shapes(config)
        self._seed = seed

    def names(self) -> list[str]:
        return list(self._shapes)

    def get(self, name: str, dtype: torch.dtype) -> Tensor:
        shape = self._shapes[name]
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            return noise.mul(shape[-1] ** -0.5).to(dtype)
        around = 0.0 if name.endswith(".bias") else 1.0  # else it is a norm's weight
        return noise.mul(0.1).add(around).to(dtype)

    def integers(self, name: str) -> None:
        """Nothing here is quantised."""


def random_weights(config: ModelConfig, seed: int = 0) -> RandomWeights:
    """A source of weights for tests and benchmarks; the same seed gives the same model."""
    return RandomWeights(config, seed)
