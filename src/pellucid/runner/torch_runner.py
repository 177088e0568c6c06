"""Runs a model with torch: loads it, takes the KV memory, executes step plans."""

from __future__ import annotations

import logging
import math
import time

import msgspec
import torch

from pellucid.config import EngineConfig, RunnerSettings
from pellucid.errors import ConfigError
from pellucid.kernels.dispatch import KernelsUnavailable, select_ops
from pellucid.kernels.interface import allocate_kv, kv_head_bytes
from pellucid.kernels.native import NativeOps
from pellucid.kernels.reference import ReferenceOps, compile_row_ops
from pellucid.load.files import ModelFiles
from pellucid.load.weights import Weights
from pellucid.messages import EngineInfo
from pellucid.models.base import Model
from pellucid.models.config import ModelConfig
from pellucid.models.registry import build_model
from pellucid.models.shapes import weight_shapes
from pellucid.runner import device as device_api
from pellucid.runner.base import KVCapacity, PendingStep, StepPlan
from pellucid.runner.executor import make_executor
from pellucid.runner.first_touch import FirstTouch
from pellucid.runner.memory import (
    fit_model_len,
    gpu_step_bytes,
    kv_block_bytes,
    kv_pool_blocks,
    model_len_limit,
)
from pellucid.runner.steps import WARM_UP_TOKENS, Steps, warm_up

logger = logging.getLogger(__name__)


class TorchRunner:
    """Implements `Runner`.

    Args:
        config: settings of the engine.
        files: where the model lies, if that is known already; resolved from the settings otherwise.
        model: a model in memory, to be used instead of loading one (tests).
        shape: name of a known model whose shape is to be filled with random weights (benchmarks).

    Raises:
        ModelError: the model cannot be found, read or run.
        ConfigError: a setting does not fit this machine or the model.
    """

    def __init__(
        self,
        config: EngineConfig,
        files: ModelFiles | None = None,
        model: Model | None = None,
        shape: str | None = None,
    ) -> None:
        self.device = device_api.pick_device(config.runner.device)
        self._dtype = device_api.pick_dtype(config.model.dtype, self.device)
        threads = config.runner.threads or device_api.compute_threads()
        if self.device.type == "cpu":
            torch.set_num_threads(threads)
            device_api.keep_freed_memory()
        self._graphs = device_api.graph_recorder(self.device) if config.runner.cuda_graphs else None
        name = "model"
        if model is None:
            model, name = self._load(config, files, shape)
        if config.scheduler.speculative != "none" and model.ops.name == "triton":
            raise ConfigError(
                "--speculative does not work with --kernels triton yet", param="speculative"
            )
        if model.config.num_experts and self._graphs is not None:
            logger.warning("--cuda-graphs is not used: a model with experts cannot be recorded")
            self._graphs = None  # the host has to know how many rows each expert has
        self._model = model
        self._take_memory(config)
        max_rows = max(config.scheduler.token_budget(str(self.device)), WARM_UP_TOKENS)
        self._executor = make_executor(
            model,
            self._kv,
            self.device,
            max_rows=max_rows,
            max_num_seqs=config.scheduler.max_num_seqs,
            max_model_len=self._max_model_len,
            threads=threads,
            graphs=self._graphs,
        )
        self._info = self._describe(config, name)
        self._steps = Steps(self._executor, self._info, config.scheduler.max_num_seqs, self.device)
        warm_up(self, compiles=self.device.type == "cuda" and model.ops.name == "triton")
        if self._first_touch is not None:
            process_bytes = device_api.resident_memory() - self._first_touch.num_touched
            self._info = msgspec.structs.replace(self._info, process_bytes=process_bytes)

    def info(self) -> EngineInfo:
        return self._info

    def kv_capacity(self) -> KVCapacity:
        return self._capacity

    def close(self) -> None:
        """Let go of the model and the KV pool."""
        if self._first_touch is not None:
            self._first_touch.stop()
        self._executor.close()
        self._kv.clear()
        del self._steps, self._executor, self._model

    # ---- start

    def _load(
        self, config: EngineConfig, files: ModelFiles | None, shape: str | None
    ) -> tuple[Model, str]:
        from pellucid.load.quantized import quantized

        if shape is None:
            model_config, source, name = _open(config, files)
        else:
            model_config, source, name = _random(shape, self.device)
        rounds = self.device if self.device.type == "cuda" else None  # numpy does, on a CPU
        weights = quantized(source, config.model.quantization, rounds)
        try:
            limit = model_len_limit(model_config, config.model.max_model_len)
            ops = _select_ops(config.runner, self.device, model_config.head_dim)
            model = build_model(model_config, weights, ops, self._dtype, self.device, limit)
        finally:
            weights.close()
        return model, name

    def _take_memory(self, config: EngineConfig) -> None:
        """Size and allocate the KV pool, and settle how long a context may be."""
        shape, asked = self._model.config, config.model.max_model_len
        block_size = config.cache.block_size
        limit = model_len_limit(shape, asked)
        kernels = self._model.ops.name
        dtype = device_api.pick_kv_dtype(config, self.device, kernels, shape.plain_keys)
        head_bytes = kv_head_bytes(shape.head_dim, dtype)
        block_bytes = kv_block_bytes(shape, block_size, head_bytes)
        max_num_seqs = config.scheduler.max_num_seqs
        available = device_api.available_memory(self.device)
        if self.device.type == "cuda":
            available -= gpu_step_bytes(shape, max_num_seqs, self._graphs is not None)
        num_blocks = kv_pool_blocks(config.cache, block_bytes, available, max_num_seqs, limit)
        self._max_model_len = fit_model_len(limit, asked, num_blocks, block_size)
        self._capacity = KVCapacity(num_blocks, block_size, block_bytes)
        self._kv = allocate_kv(
            shape.num_layers,
            num_blocks + (self._graphs is not None),  # scratch for the rows that fill up a graph
            block_size,
            shape.num_kv_heads,
            shape.head_dim,
            dtype,
            self.device,
        )
        self._first_touch = FirstTouch(self._kv) if self.device.type == "cpu" else None

    def _describe(self, config: EngineConfig, name: str) -> EngineInfo:
        shape = self._model.config
        ops = self._model.ops
        num_parameters = sum(math.prod(s) for s in weight_shapes(shape).values())
        return EngineInfo(
            model=config.model.served_model_name or name,
            architecture=shape.architecture,
            dtype=str(self._dtype).removeprefix("torch."),
            device=str(self.device),
            kernels=ops.name,
            vocab_size=shape.vocab_size,
            max_model_len=self._max_model_len,
            eos_token_ids=list(shape.eos_token_ids),
            num_kv_blocks=self._capacity.num_blocks,
            block_size=self._capacity.block_size,
            kv_block_bytes=self._capacity.block_bytes,
            kv_dtype=str(self._kv[0].k.dtype).removeprefix("torch."),
            weight_bytes=ops.weight_bytes or num_parameters * self._dtype.itemsize,
            num_parameters=num_parameters,
            expert_weight_bytes=self._model.expert_bytes,
            active_experts=shape.experts_per_token / (shape.num_experts or 1) or 1.0,
            hidden_size=shape.hidden_size,
        )

    # ---- a step

    def execute(self, plan: StepPlan) -> PendingStep:
        """Drop rows, make rows, launch the forward pass of the plan's chunks.

        Raises:
            ValueError: a chunk reaches beyond what its request knows or holds.
        """
        begin = time.monotonic()
        self._steps.settle()
        for request_id in plan.dropped:
            self._steps.drop(request_id)
        for row in plan.new_rows:
            self._steps.add(row)
        return self._steps.launch(plan, begin)


def _open(config: EngineConfig, files: ModelFiles | None) -> tuple[ModelConfig, Weights, str]:
    from pellucid.load.hub import resolve
    from pellucid.load.model_config import load_config
    from pellucid.load.weights import open_weights

    files = resolve(config.model) if files is None else files
    model_config = load_config(files)
    return model_config, open_weights(files, model_config), files.name


def _random(shape: str, device: torch.device) -> tuple[ModelConfig, Weights, str]:
    from pellucid.load.random import RepeatedNoise, named_shape

    model_config = named_shape(shape)
    return model_config, RepeatedNoise(model_config, device), f"{shape}, random weights"


def _select_ops(settings: RunnerSettings, device: torch.device, head_dim: int) -> ReferenceOps:
    try:
        ops = select_ops(settings.kernels, device, head_dim)
    except KernelsUnavailable as error:
        raise ConfigError(str(error), param="kernels") from None
    if settings.torch_compile:
        if isinstance(ops, NativeOps):
            raise ConfigError(
                "--torch-compile is for ops that torch runs; use --kernels reference or triton",
                param="torch_compile",
            )
        compile_row_ops(ops)
    return ops
