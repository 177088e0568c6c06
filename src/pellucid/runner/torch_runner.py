"""Runs a model with torch: loads it, takes the KV memory, executes step plans."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from pellucid.config import EngineConfig
from pellucid.errors import ConfigError, ModelError
from pellucid.kernels.interface import allocate_kv, kv_head_bytes
from pellucid.kernels.ranks import ALONE, Ranks
from pellucid.load.files import ModelFiles
from pellucid.load.lora import read_adapter
from pellucid.messages import EngineInfo
from pellucid.models.base import Model
from pellucid.runner import device as device_api
from pellucid.runner.base import AdapterInfo, KVCapacity, PendingStep, StepPlan
from pellucid.runner.draft_model import DraftModel
from pellucid.runner.executor import Executor, make_executor
from pellucid.runner.first_touch import FirstTouch
from pellucid.runner.loading import Loaded, as_loaded, load_draft, load_model
from pellucid.runner.memory import (
    fit_model_len,
    gpu_step_bytes,
    kv_block_bytes,
    kv_pool_blocks,
    model_len_limit,
)
from pellucid.runner.step_times import measured
from pellucid.runner.steps import WARM_UP_TOKENS, Steps, warm_up
from pellucid.spec.drafter import Drafter
from pellucid.spec.either import Either
from pellucid.spec.length import StepTimes
from pellucid.spec.ngram import NgramDrafter

logger = logging.getLogger(__name__)


class TorchRunner:
    """Implements `Runner`.

    Args:
        config: settings of the engine.
        files: where the model lies, if that is known already; resolved from the settings otherwise.
        model: a model in memory, to be used instead of loading one (tests).
        shape: name of a known model whose shape is to be filled with random weights (benchmarks).
        draft: a draft model in memory, likewise instead of loading one.
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
        draft: Model | None = None,
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
        self._loaded = (
            load_model(config, files, shape, self._dtype, self.device, ranks)
            if model is None
            else as_loaded(model)
        )
        if self._model.config.num_experts and self._graphs is not None:
            logger.warning("--cuda-graphs is not used: a model with experts cannot be recorded")
            self._graphs = None  # the host has to know how many rows each expert has
        speculative = config.scheduler.guesses_by(self._model.ops.name)
        self._draft = self._load_draft(config) if draft is None else as_loaded(draft)
        ranks.enter(self.device)
        self._take_memory(config)
        max_rows = max(config.scheduler.token_budget(str(self.device)), WARM_UP_TOKENS)
        executor = make_executor(
            self._model,
            self._kv,
            self.device,
            max_rows=max_rows,
            max_num_seqs=config.scheduler.max_num_seqs,
            max_model_len=self._max_model_len,
            threads=threads,
            graphs=self._graphs,
        )
        self._executor = lead(executor)
        self._info = self._describe(config, speculative)
        self.drafter: Drafter | None = None
        if speculative != "none" and ranks.rank == 0:
            self.drafter = self._make_drafter(config, max_rows)
        self._steps = Steps(self._executor, self._info, config.scheduler.max_num_seqs, self.device)
        if ranks.rank == 0:
            kernels = self._model.ops.name
            warm_up(self, compiles=self.device.type == "cuda" and kernels == "triton")
        if self._first_touch is not None:
            process_bytes = device_api.resident_memory() - self._first_touch.num_touched
            process_bytes *= ranks.size
            self._info = msgspec.structs.replace(self._info, process_bytes=process_bytes)

    @property
    def executor(self) -> Executor:
        """What runs the model, of this rank or as rank 0 leads it."""
        return self._executor

    @property
    def _model(self) -> Model:
        return self._loaded.model

    def info(self) -> EngineInfo:
        return self._info

    def kv_capacity(self) -> KVCapacity:
        return self._capacity

    def load_adapter(self, adapter: int, path: str) -> AdapterInfo:
        """Read a LoRA adapter and keep it under a number.

        Raises:
            ModelError: it cannot be read, or is not for this model.
        """
        adapters = self._model.adapters
        if self._ranks.size > 1:
            raise ModelError("LoRA adapters do not work with --tensor-parallel-size yet")
        if adapters is None:
            raise ModelError("this model was built without room for adapters")
        found = read_adapter(Path(path), self._model.config, adapters.max_rank)
        adapters.load(adapter, found.updates)
        return AdapterInfo(found.digest(), found.rank, found.num_parameters)

    def unload_adapter(self, adapter: int) -> None:
        """Forget an adapter that no request has any more."""
        if self._model.adapters is not None:
            self._model.adapters.unload(adapter)

    def close(self) -> None:
        """Let go of the model and the KV pool."""
        if self._first_touch is not None:
            self._first_touch.stop()
        self._executor.close()
        self._kv.clear()
        self._draft_kv.clear()
        del self._steps, self._executor, self._loaded, self._draft
        self.drafter = None

    # ---- start

    def _load_draft(self, config: EngineConfig) -> Loaded | None:
        wanted = config.draft()
        if wanted is None:
            return None
        limit = model_len_limit(self._model.config, config.model.max_model_len)
        return load_draft(config, wanted, limit, self._dtype, self.device)

    def _take_memory(self, config: EngineConfig) -> None:
        """Size and allocate the KV pools, and settle how long a context may be."""
        models = [self._model] if self._draft is None else [self._model, self._draft.model]
        asked = config.model.max_model_len
        limit = model_len_limit(self._model.config, asked)
        block_size, max_num_seqs = config.cache.block_size, config.scheduler.max_num_seqs
        dtypes = [self._kv_dtype(config, model) for model in models]
        block_bytes = sum(
            kv_block_bytes(m.config, block_size, kv_head_bytes(m.config.head_dim, dtype))
            for m, dtype in zip(models, dtypes, strict=True)
        )
        available = device_api.available_memory(self.device)
        if self.device.type == "cuda":
            graphs = self._graphs is not None
            available -= sum(gpu_step_bytes(m.config, max_num_seqs, graphs) for m in models)
        else:
            available //= self._ranks.size  # all take it from this machine's
        num_blocks = kv_pool_blocks(config.cache, block_bytes, available, max_num_seqs, limit)
        num_blocks = self._ranks.least(num_blocks)
        self._max_model_len = fit_model_len(limit, asked, num_blocks, block_size)
        self._capacity = KVCapacity(num_blocks, block_size, block_bytes)
        self._kv, *others = [
            allocate_kv(
                model.config.num_layers,
                num_blocks + (self._graphs is not None),  # scratch for rows that fill up a graph
                block_size,
                model.config.num_kv_heads,
                model.config.head_dim,
                dtype,
                self.device,
            )
            for model, dtype in zip(models, dtypes, strict=True)
        ]
        self._draft_kv = others[0] if others else []
        on_cpu = self.device.type == "cpu"
        self._first_touch = FirstTouch(self._kv + self._draft_kv) if on_cpu else None

    def _kv_dtype(self, config: EngineConfig, model: Model) -> torch.dtype:
        plain_keys = model.config.plain_keys
        return device_api.pick_kv_dtype(config, self.device, model.ops.name, plain_keys)

    def _make_drafter(self, config: EngineConfig, max_rows: int) -> Drafter:
        """Prompt lookup, and the draft model if there is one: what costs nothing is always worth
        a look, and beats the draft model where a text repeats something."""
        settings, model = config.scheduler, None
        if self._draft is None:
            times = self._measured(None, max_rows)
        else:
            model = self._draft_model(config, self._draft, max_rows)
            times = model.times.without_draft()
        lookup = NgramDrafter(settings.prompt_lookup_min, settings.prompt_lookup_max, times)
        return lookup if model is None else Either(lookup, model)

    def _measured(self, draft: Executor | None, room: int) -> StepTimes:
        num_blocks, block_size = self._capacity.num_blocks, self._capacity.block_size
        return measured(
            self._executor,
            draft,
            room=min(room, num_blocks * block_size, self._max_model_len),
            vocab_size=self._model.config.vocab_size,
            block_size=block_size,
            device=self.device,
        )

    def _draft_model(self, config: EngineConfig, draft: Loaded, max_rows: int) -> DraftModel:
        max_num_seqs, shape = config.scheduler.max_num_seqs, draft.model.config
        max_model_len = min(shape.max_position, self._max_model_len)
        executor = make_executor(
            draft.model,
            self._draft_kv,
            self.device,
            max_rows=max_rows,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            threads=1,
            beside=self._executor,
        )
        times = self._measured(executor, min(max_rows, max_model_len))
        cost = times.ratio(1, 1) - 1.0
        self._info = msgspec.structs.replace(self._info, draft_cost=round(cost, 3))
        drafter = DraftModel(
            executor,
            vocab_sizes=(shape.vocab_size, self._model.config.vocab_size),
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            block_size=self._capacity.block_size,
            max_rows=max_rows,
            times=times,
        )
        drafter.warm_up(self._capacity.num_blocks)
        return drafter

    def _describe(self, config: EngineConfig, speculative: str) -> EngineInfo:
        shape, draft, num_ranks = self._model.config, self._draft, self._ranks.size
        return EngineInfo(
            model=config.model.served_model_name or self._loaded.name,
            architecture=shape.architecture,
            dtype=str(self._dtype).removeprefix("torch."),
            device=str(self.device),
            kernels=self._model.ops.name,
            vocab_size=shape.vocab_size,
            max_model_len=self._max_model_len,
            eos_token_ids=list(shape.eos_token_ids),
            num_kv_blocks=self._capacity.num_blocks,
            block_size=self._capacity.block_size,
            kv_block_bytes=self._capacity.block_bytes * num_ranks,
            kv_dtype=str(self._kv[0].k.dtype).removeprefix("torch."),
            weight_bytes=self._loaded.weight_bytes(self._dtype, num_ranks),
            num_parameters=self._loaded.num_parameters,
            expert_weight_bytes=self._model.expert_bytes,
            active_experts=shape.experts_per_token / (shape.num_experts or 1) or 1.0,
            hidden_size=shape.hidden_size,
            tensor_parallel_size=num_ranks,
            speculative=speculative,
            draft_model="" if draft is None else draft.name,
            draft_weight_bytes=0 if draft is None else draft.weight_bytes(self._dtype),
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
