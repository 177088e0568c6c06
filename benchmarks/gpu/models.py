"""Models of known shapes with random weights, made on the device, and engines over them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch

from pellucid.config import EngineConfig
from pellucid.engine.ahead import create_core
from pellucid.engine.core import EngineCore
from pellucid.kernels.interface import IntegerMatrix
from pellucid.kernels.reference import ReferenceOps
from pellucid.load.files import ModelFiles
from pellucid.load.quantized import AT_LEAST_8_BITS
from pellucid.load.random import SHAPES, RepeatedNoise
from pellucid.messages import AddRequest, pack_tokens
from pellucid.models.config import ModelConfig
from pellucid.models.registry import build_model
from pellucid.runner.base import KVCapacity
from pellucid.runner.torch_runner import TorchRunner
from pellucid.sampling_params import SamplingParams

LLAMA3_8B, QWEN3_06B = SHAPES["llama3-8b"], SHAPES["qwen3-0.6b"]
TINY = ModelConfig(
    architecture="qwen3",
    vocab_size=96,
    hidden_size=64,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=96,
    max_position=256,
    tie_embeddings=True,
    qk_norm=True,
)


class DeviceWeights(RepeatedNoise):
    """Random weights made where they are needed; activations stay of order one.

    Args:
        bits: 4 or 8: matrices are integers with scales, the embedding and the head 8-bit ones.
    """

    def __init__(self, config: ModelConfig, device: torch.device, bits: int | None = None) -> None:
        super().__init__(config, device)
        self._bits = bits
        self._made: dict[tuple[int, int, int], IntegerMatrix] = {}

    def integers(self, name: str) -> Iterator[IntegerMatrix] | None:
        """The same numbers for matrices of one shape, each in memory of its own all the same."""
        shape = self.shape(name)
        if self._bits is None or len(shape) != 2:
            return None
        n, k = shape
        bits = 8 if name.endswith(AT_LEAST_8_BITS) else self._bits
        if (n, k, bits) not in self._made:
            rng = np.random.default_rng(n + k)
            q = rng.integers(0, 1 << bits, (n, k), dtype=np.uint8)
            scale = np.float32(np.float16(4 / (k**0.5 * (1 << bits))))
            scales = np.full((n, k // 32), scale, np.float32)
            self._made[n, k, bits] = IntegerMatrix(q, scales, bits=bits, zero=1 << (bits - 1))
        return iter([self._made[n, k, bits]])


def make_runner(
    config: ModelConfig,
    ops: ReferenceOps,
    device: torch.device,
    dtype: torch.dtype,
    *,
    tokens: int,
    longest: int,
    max_num_seqs: int,
    bits: int | None = None,
    replayed: bool = False,
    kv_cache_dtype: str = "auto",
) -> tuple[TorchRunner, EngineConfig]:
    """A runner over random weights.

    Args:
        replayed: steps from CUDA graphs, each planned and launched while the one before it runs.
        tokens: that there is room for in the KV pool.
        longest: prompt and answer of one sequence.
    """
    model = build_model(config, DeviceWeights(config, device, bits), ops, dtype, device)
    settings = EngineConfig.of(
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        max_num_seqs=max_num_seqs,
        num_kv_blocks=tokens // 16 + max_num_seqs,
        max_model_len=min(config.max_position, longest),
        prefix_caching=False,
        kv_cache_dtype=kv_cache_dtype,
        cuda_graphs=replayed,
        async_scheduling=replayed,
    )
    return TorchRunner(settings, model=model), settings


def engine(
    runner: TorchRunner,
    settings: EngineConfig,
    budget: int | None = None,
    num_blocks: int | None = None,
) -> EngineCore:
    """An engine over the runner.

    Args:
        budget: tokens of a step, at most.
        num_blocks: of the runner's KV blocks, which the engine may give away.
    """
    scheduler = settings.scheduler
    if budget is not None:
        scheduler = msgspec.structs.replace(scheduler, max_num_batched_tokens=budget)
    used = runner if num_blocks is None else Narrow(runner, num_blocks)
    return create_core(used, settings.cache, scheduler)


class Narrow:
    """A runner that holds fewer KV blocks than it does. Implements `Runner`."""

    drafter = None

    def __init__(self, runner: TorchRunner, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._runner = runner
        self.info, self.execute, self.close = runner.info, runner.execute, runner.close

    def kv_capacity(self) -> KVCapacity:
        return replace(self._runner.kv_capacity(), num_blocks=self._num_blocks)


def gguf(path: Path) -> ModelFiles:
    """A model's file, whose name does not matter."""
    return ModelFiles("gguf", path, path.stem)


def captured(runner: TorchRunner) -> list[tuple[int, int]]:
    """Rows and context of the CUDA graphs that were made so far."""
    return list(getattr(runner._executor, "recorded", []))


def bytes_read(runner: TorchRunner) -> int:
    """Bytes of the weights that a decoding step reads.

    What the runner reports, all matrices as they lie in memory (with norms and biases where torch
    alone computes), less an input embedding that is not the head's, too: of that a step reads a row
    per token. Keys, values and activations are not counted.
    """
    model, total = runner._model, runner.info().weight_bytes
    return total if model.config.tie_embeddings else total - model.embedding.weight.nbytes


def request(name: str, prompt: list[int], sampling: SamplingParams) -> AddRequest:
    return AddRequest(
        request_id=name,
        prompt=pack_tokens(prompt),
        sampling=sampling,
        arrival_time=time.monotonic(),
    )
