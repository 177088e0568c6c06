"""Runs a model with torch: loads it, takes the KV memory, executes step plans."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec
import torch

from pellucid.config import EngineConfig, RunnerSettings
from pellucid.errors import ConfigError
from pellucid.kernels.dispatch import KernelsUnavailable, select_ops
from pellucid.kernels.interface import allocate_kv, kv_head_bytes
from pellucid.kernels.native import NativeOps
from pellucid.kernels.ranks import ALONE, Ranks
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
from pellucid.runner.executor import Executor, make_executor
from pellucid.runner.first_touch import FirstTouch
from pellucid.runner.memory import (
    fit_model_len,
    gpu_step_bytes,
    kv_block_bytes,
    kv_pool_blocks,
    model_len_limit,
)
from pellucid.runner.steps import WARM_UP_TOKENS, Steps, warm_up


class TorchRunner:
    """Implements `Runner`.

    Args:
        config: settings of the engine.
        files: where the model lies, if that is known already; resolved from the settings otherwise.
        model: a model in memory, to be used instead of loading one (tests).
        shape: name of a known model whose shape is to be filled with random weights (benchmarks).
        ranks: which of several ranks this is, see `runner/parallel`. Only rank 0 is given plans;
            of the others, what leads them asks the `executor`.
        lead: makes of rank 0's executor the one that has the others do the same.

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
        ranks: Ranks = ALONE,
        lead: Callable[[Executor], Executor] = lambda executor: executor,
    ) -> None:
        if ranks.size != config.runner.tensor_parallel_size:
            raise ConfigError("several ranks are started by create_runner")
        self._ranks = ranks
        self.device = device_api.pick_rank_device(config.runner.device, ranks.rank, ranks.size)
        self._dtype = device_api.pick_dtype(config.model.dtype, self.device)
        threads = config.runner.threads or device_api.compute_threads()
        threads = max(1, threads // ranks.size)
        if self.device.type == "cpu":
            torch.set_num_threads(threads)
            device_api.keep_freed_memory()
        self._graphs = device_api.graph_recorder(self.device) if config.runner.cuda_graphs else None
        name = "model"
        if model is None:
            model, name = self._load(config, files, shape)
        else:
            self._num_parameters = count_parameters(model.config)
        if config.scheduler.speculative != "none" and model.ops.name == "triton":
            raise ConfigError(
                "--speculative does not work with --kernels triton yet", param="speculative"
            )
        self._model = model
        ranks.enter(self.device)
        self._take_memory(config)
        max_rows = max(config.scheduler.token_budget(str(self.device)), WARM_UP_TOKENS)
        executor = make_executor(
            model,
            self._kv,
            self.device,
            max_rows=max_rows,
            max_num_seqs=config.scheduler.max_num_seqs,
            max_model_len=self._max_model_len,
            threads=threads,
            graphs=self._graphs,
        )
        self._executor = lead(executor)
        self._info = self._describe(config, name)
        self._steps = Steps(self._executor, self._info, config.scheduler.max_num_seqs, self.device)
        if ranks.rank == 0:
            warm_up(self, compiles=self.device.type == "cuda" and model.ops.name == "triton")
        if self._first_touch is not None:
            process_bytes = device_api.resident_memory() - self._first_touch.num_touched
            process_bytes *= ranks.size
            self._info = msgspec.structs.replace(self._info, process_bytes=process_bytes)

    @property
    def executor(self) -> Executor:
        """What runs the model, of this rank or as rank 0 leads it."""
        return self._executor

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
        from pellucid.load.sharded import shard

        if shape is None:
            model_config, source, name = _open(config, files)
        else:
            model_config, source, name = _random(shape, self.device)
        rounds = self.device if self.device.type == "cuda" else None  # numpy does, on a CPU
        weights = quantized(source, config.model.quantization, rounds)
        try:
            limit = model_len_limit(model_config, config.model.max_model_len)
            ops = _select_ops(config.runner, self.device, model_config.head_dim, self._ranks)
            weights, own = shard(weights, model_config, self._ranks.rank, self._ranks.size)
            model = build_model(own, weights, ops, self._dtype, self.device, limit)
        finally:
            weights.close()
        self._num_parameters = count_parameters(model_config)
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
        else:
            available //= self._ranks.size  # all take it from this machine's
        num_blocks = kv_pool_blocks(config.cache, block_bytes, available, max_num_seqs, limit)
        num_blocks = self._ranks.least(num_blocks)
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
        num_ranks = self._ranks.size
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
            kv_block_bytes=self._capacity.block_bytes * num_ranks,
            kv_dtype=str(self._kv[0].k.dtype).removeprefix("torch."),
            weight_bytes=ops.weight_bytes * num_ranks
            or self._num_parameters * self._dtype.itemsize,
            num_parameters=self._num_parameters,
            hidden_size=shape.hidden_size,
            tensor_parallel_size=num_ranks,
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


def count_parameters(config: ModelConfig) -> int:
    return sum(math.prod(shape) for shape in weight_shapes(config).values())


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
