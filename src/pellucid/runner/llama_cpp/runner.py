"""Runs a GGUF model with llama.cpp: loads it, takes its cells, executes step plans."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.config import CacheSettings, EngineConfig
from pellucid.errors import ConfigError
from pellucid.kernels import native
from pellucid.load.files import ModelFiles
from pellucid.messages import EngineInfo
from pellucid.models.config import ModelConfig
from pellucid.runner import device as device_api
from pellucid.runner.base import KVCapacity, PendingStep, StepPlan, StepResult
from pellucid.runner.batch import Ints, StepRows
from pellucid.runner.executor import Likeliest
from pellucid.runner.llama_cpp.cells import NO_SEQUENCE, Cells
from pellucid.runner.llama_cpp.context import (
    CELL_TYPES,
    Floats,
    LlamaContext,
    LlamaModel,
    import_llama_cpp,
)
from pellucid.runner.memory import fit_model_len, kv_pool_blocks, model_len_limit
from pellucid.runner.steps import WARM_UP_TOKENS, Steps, warm_up
from pellucid.sample.backends import NativeSampler, Sampler, TorchSampler

# llama.cpp's attention passes over every cell in use, whoever's it is: a pool as large as memory
# allows would slow all requests down for the sake of the prefix cache.
DEFAULT_CELLS = 32_768
CPU = torch.device("cpu")

_log = logging.getLogger(__name__)


class LlamaCppRunner:
    """Implements `Runner`.

    Raises:
        ModelError: the model cannot be found, read or run.
        ConfigError: a setting is not for this runner, or does not fit this machine or the model.
    """

    drafter = None

    def __init__(self, config: EngineConfig) -> None:
        check_settings(config)
        llama = import_llama_cpp()
        files, shape = _find(config)
        threads = config.runner.threads or device_api.compute_threads()
        max_rows, num_seqs = config.scheduler.max_num_seqs, llama.llama_max_parallel_sequences()
        if 2 * max_rows > num_seqs:
            raise ConfigError(
                f"max_num_seqs: at most {num_seqs // 2} with --runner llama-cpp",
                param="max_num_seqs",
            )
        model = LlamaModel(llama, files.path)
        self._capacity, max_model_len = size_pool(config, shape)
        size = self._capacity.block_size
        self._context = LlamaContext(
            llama,
            model,
            num_cells=self._capacity.num_blocks * size,
            max_tokens=max(config.scheduler.token_budget("cpu"), WARM_UP_TOKENS),
            num_seqs=num_seqs,
            threads=threads,
            cell_type=CELL_TYPES[_cell_type(config.cache)][0],
        )
        self._cells = Cells(
            self._context, max_rows, num_seqs, size, park=config.cache.prefix_caching
        )
        executor = LlamaCppExecutor(self._context, self._cells)
        self._info = EngineInfo(
            model=config.model.served_model_name or files.name,
            architecture=shape.architecture,
            dtype="float32",
            device="cpu",
            kernels=f"llama-cpp-python {llama.__version__}",
            vocab_size=model.vocab_size,
            max_model_len=max_model_len,
            eos_token_ids=list(shape.eos_token_ids),
            num_kv_blocks=self._capacity.num_blocks,
            block_size=size,
            kv_block_bytes=self._capacity.block_bytes,
            kv_dtype=_cell_type(config.cache),
            weight_bytes=model.num_bytes,
            num_parameters=model.num_parameters,
            hidden_size=model.hidden_size,
        )
        self._steps = Steps(executor, self._info, max_rows, CPU)
        warm_up(self)

    def info(self) -> EngineInfo:
        return self._info

    def kv_capacity(self) -> KVCapacity:
        return self._capacity

    def close(self) -> None:
        """Let go of the model and its cells."""
        del self._steps
        self._context.close()

    def execute(self, plan: StepPlan) -> PendingStep:
        """Drop rows, make rows, account for their cells, compute the plan's chunks.

        Raises:
            ValueError: a chunk reaches beyond what its request knows or holds.
            RuntimeError: llama.cpp failed.
        """
        begin = time.monotonic()
        self._steps.settle()
        for request_id in plan.dropped:
            row = self._steps.drop(request_id)
            if row is not None and self._cells.seq_of_row[row] != NO_SEQUENCE:
                self._cells.leave(row)
        for new in plan.new_rows:
            self._steps.add(new)
        for chunk in plan.chunks:
            row = self._steps.batch.row_of(chunk.request_id)
            if self._cells.seq_of_row[row] == NO_SEQUENCE:
                num_shared = chunk.start // self._capacity.block_size
                self._cells.enter(row, chunk.new_block_ids, num_shared)
            elif chunk.new_block_ids:
                self._cells.extend(row, chunk.new_block_ids)
        return _PendingStep(self._steps.launch(plan, begin), self._cells.trim())


@dataclass(frozen=True, slots=True)
class _PendingStep:
    """Adds what was lost to a step's result. Implements `PendingStep`."""

    step: PendingStep
    lost_blocks: list[int]

    def result(self) -> StepResult:
        result = self.step.result()
        result.lost_blocks = self.lost_blocks
        return result


class LlamaCppExecutor:
    """Steps as batches of llama.cpp. Implements `Executor`."""

    def __init__(self, context: LlamaContext, cells: Cells) -> None:
        self._context = context
        self._seq_of_row = cells.seq_of_row
        self._native = native.obstacle(CPU) is None
        self.sampler: Sampler[Any] = TorchSampler()
        if self._native:
            # Alone: threads that wait for the next sampling would spin on llama.cpp's cores.
            self.sampler = NativeSampler(native.thread_team(1))
            torch.set_num_threads(1)

    def launch(self, step: StepRows, wanted: Ints) -> LlamaCppForward:
        # llama.cpp gives logits in the order of the batch, each of them once.
        rows, places = np.unique(wanted, return_inverse=True)
        logits = self._context.logits(step.token_ids, step.positions, self._seqs(step), rows)
        if not np.array_equal(rows, wanted):  # prompt logprobs: some are wanted for both purposes
            logits = logits[places]
        return LlamaCppForward(logits, self._native)

    def likeliest(self, step: StepRows, wanted: Ints) -> Likeliest | None:
        return None

    def hidden(self, step: StepRows, wanted: Ints) -> Tensor:
        states = self._context.hidden(step.token_ids, step.positions, self._seqs(step))
        return torch.from_numpy(states[wanted])

    def remember(self, rows: Ints, token_ids: Tensor) -> None:
        """Never called: the tokens are on the host."""

    def close(self) -> None:
        """Nothing was recorded."""

    def _seqs(self, step: StepRows) -> Ints:
        return np.repeat(self._seq_of_row[step.rows], np.diff(step.query_start)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class LlamaCppForward:
    """The logits of a step, which is over. Implements `Forward`."""

    found: Floats  # [n, V], those wanted, which the sampler may write to
    native: bool  # the sampler takes arrays, not tensors

    def logits(self, begin: int, end: int) -> Any:
        rows = self.found[begin:end]
        return rows if self.native else torch.from_numpy(rows)


def check_settings(config: EngineConfig) -> None:
    """Refuse settings that mean nothing to llama.cpp as it is used here.

    Raises:
        ConfigError: naming the first of them.
    """
    model, runner = config.model, config.runner
    refused = {
        "device": runner.device not in ("auto", "cpu"),
        "kernels": runner.kernels != "auto",
        "dtype": model.dtype != "auto",
        "quantization": model.quantization != "none",
    }
    if config.scheduler.async_scheduling:
        raise ConfigError(
            "--async-scheduling is not for --runner llama-cpp, whose cells follow each step's end",
            param="async_scheduling",
        )
    if config.scheduler.speculative in ("ngram", "draft"):
        raise ConfigError("--speculative is not for --runner llama-cpp", param="speculative")
    for name, is_set in refused.items():
        if is_set:
            flag = name.replace("_", "-")
            raise ConfigError(
                f"--{flag} is not for --runner llama-cpp, which computes on the CPU with the"
                " weights of the file as they are",
                param=name,
            )


def size_pool(config: EngineConfig, shape: ModelConfig) -> tuple[KVCapacity, int]:
    """How many blocks there are, and how long a context may be.

    Raises:
        ConfigError: what was asked for does not fit.
    """
    cache, asked = config.cache, config.model.max_model_len
    limit, size = model_len_limit(shape, asked), cache.block_size
    numbers = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * size
    block_bytes = int(numbers * CELL_TYPES[_cell_type(cache)][1] / 8)
    available = device_api.available_memory(CPU)
    num_blocks = kv_pool_blocks(cache, block_bytes, available, config.scheduler.max_num_seqs, limit)
    if cache.num_kv_blocks is None and cache.kv_cache_memory_mib is None:
        num_blocks = min(num_blocks, -(-max(DEFAULT_CELLS, limit) // size))
    return KVCapacity(num_blocks, size, block_bytes), fit_model_len(limit, asked, num_blocks, size)


def _find(config: EngineConfig) -> tuple[ModelFiles, ModelConfig]:
    from pellucid.load.hub import resolve
    from pellucid.load.model_config import load_config

    files = resolve(config.model)
    if files.kind != "gguf":
        raise ConfigError(
            f"--runner llama-cpp needs a .gguf file, and {files.name} is a Hugging Face folder",
            param="model",
        )
    return files, load_config(files)


def _cell_type(cache: CacheSettings) -> str:
    return "float16" if cache.kv_cache_dtype == "auto" else cache.kv_cache_dtype
