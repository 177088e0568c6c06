"""Models from files, from a known shape, or as drafts: in memory, with the ops that run them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pellucid.config import EngineConfig, ModelSettings, RunnerSettings
from pellucid.errors import ConfigError
from pellucid.kernels.dispatch import KernelsUnavailable, select_ops
from pellucid.kernels.native import NativeOps
from pellucid.kernels.ranks import ALONE, Ranks
from pellucid.kernels.reference import ReferenceOps, compile_row_ops
from pellucid.load.files import ModelFiles
from pellucid.load.weights import Weights
from pellucid.models.base import Model
from pellucid.models.config import ModelConfig
from pellucid.models.registry import build_model
from pellucid.models.shapes import count_parameters
from pellucid.runner.memory import model_len_limit


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, or what one of several ranks has of it."""

    model: Model
    name: str
    num_parameters: int  # of the whole

    def weight_bytes(self, dtype: torch.dtype, num_ranks: int = 1) -> int:
        """Of the whole, in the memory of all ranks."""
        packed = self.model.ops.weight_bytes * num_ranks
        return packed or self.num_parameters * dtype.itemsize


def as_loaded(model: Model) -> Loaded:
    """A model that somebody else made."""
    return Loaded(model, "model", count_parameters(model.config))


def load_model(
    config: EngineConfig,
    files: ModelFiles | None,
    shape: str | None,
    dtype: torch.dtype,
    device: torch.device,
    ranks: Ranks,
) -> Loaded:
    """The model, or a rank's shard of it.

    Args:
        files: where it lies, if that is known already; resolved from the settings otherwise.
        shape: name of a known model whose shape is to be filled with random weights.

    Raises:
        ModelError: the model cannot be found or read.
        ConfigError: a setting does not fit this machine or the model.
    """
    from pellucid.load.quantized import quantized
    from pellucid.load.sharded import shard

    if shape is None:
        model_config, source, name = _open(config.model, files)
    else:
        model_config, source, name = _random(shape, device)
    rounds = device if device.type == "cuda" else None  # numpy does, on a CPU
    weights = quantized(source, config.model.quantization, rounds)
    try:
        limit = model_len_limit(model_config, config.model.max_model_len)
        ops = _select_ops(config.runner, device, model_config.head_dim, ranks)
        weights, own = shard(weights, model_config, ranks.rank, ranks.size)
        # Adapters are not divided among ranks yet.
        rank = config.model.max_lora_rank if ranks.size == 1 else None
        model = build_model(own, weights, ops, dtype, device, limit, max_lora_rank=rank)
    finally:
        weights.close()
    return Loaded(model, name, count_parameters(model_config))


def load_draft(
    config: EngineConfig,
    settings: ModelSettings,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Loaded:
    """A draft model; no longer contexts than `max_model_len` will come up. Raises likewise."""
    from pellucid.load.quantized import at_most_4_bits, quantized

    shape, source, name = _open(settings, None)
    try:
        ops = _select_ops(config.runner, device, shape.head_dim, ALONE)
        is_native = isinstance(ops, NativeOps)  # others compute with dense matrices
        weights = at_most_4_bits(source) if is_native else quantized(source, settings.quantization)
        limit = min(shape.max_position, max_model_len)
        model = build_model(shape, weights, ops, dtype, device, limit)
    finally:
        source.close()
    return Loaded(model, name, count_parameters(shape))


def _open(settings: ModelSettings, files: ModelFiles | None) -> tuple[ModelConfig, Weights, str]:
    from pellucid.load.hub import resolve
    from pellucid.load.model_config import load_config
    from pellucid.load.weights import open_weights

    files = resolve(settings) if files is None else files
    model_config = load_config(files)
    return model_config, open_weights(files, model_config), files.name


def _random(shape: str, device: torch.device) -> tuple[ModelConfig, Weights, str]:
    from pellucid.load.random import RepeatedNoise, named_shape

    model_config = named_shape(shape)
    return model_config, RepeatedNoise(model_config, device), f"{shape}, random weights"


def _select_ops(
    settings: RunnerSettings, device: torch.device, head_dim: int, ranks: Ranks
) -> ReferenceOps:
    try:
        ops = select_ops(settings.kernels, device, head_dim, ranks.size)
    except KernelsUnavailable as error:
        raise ConfigError(str(error), param="kernels") from None
    ops.ranks = ranks
    if settings.torch_compile:
        if isinstance(ops, NativeOps):
            raise ConfigError(
                "--torch-compile is for ops that torch runs; use --kernels reference or triton",
                param="torch_compile",
            )
        compile_row_ops(ops)
    return ops
