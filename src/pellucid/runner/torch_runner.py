"""Runs a model with torch: loads it, takes the KV memory, executes step plans."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from pellucid.config import EngineConfig
from pellucid.errors import ConfigError, ModelError
from pellucid.kernels.dispatch import KernelsUnavailable, select_ops
from pellucid.kernels.interface import allocate_kv, kv_head_bytes
from pellucid.kernels.reference import ReferenceOps
from pellucid.load.files import ModelFiles
from pellucid.messages import EngineInfo, TokenLogprobs
from pellucid.models.base import Model
from pellucid.models.registry import build_model
from pellucid.models.shapes import weight_shapes
from pellucid.runner import device as device_api
from pellucid.runner.base import Chunk, KVCapacity, NewRow, PendingStep, StepPlan, StepResult
from pellucid.runner.batch import Batch, Ints, StepRows
from pellucid.runner.executor import Forward, make_executor
from pellucid.runner.first_touch import FirstTouch
from pellucid.runner.memory import fit_model_len, kv_block_bytes, kv_pool_blocks, model_len_limit
from pellucid.runner.pooling import PoolingStep, Pools
from pellucid.runner.sampling import RowSampling
from pellucid.sampling_params import SamplingParams

# Prompt logprobs are computed for so many tokens at a time: logits of a whole prompt over a large
# vocabulary would take gigabytes.
PROMPT_LOGPROB_ROWS = 64
WARM_UP_TOKENS = 32


class TorchRunner:
    """Implements `Runner`.

    Args:
        config: settings of the engine.
        files: where the model lies, if that is known already; resolved from the settings otherwise.
        model: a model in memory, to be used instead of loading one (tests).

    Raises:
        ModelError: the model cannot be found, read or run.
        ConfigError: a setting does not fit this machine or the model.
    """

    def __init__(
        self, config: EngineConfig, files: ModelFiles | None = None, model: Model | None = None
    ) -> None:
        self.device = device_api.pick_device(config.runner.device)
        self._dtype = device_api.pick_dtype(config.model.dtype, self.device)
        threads = config.runner.threads or device_api.compute_threads()
        if self.device.type == "cpu":
            torch.set_num_threads(threads)
            device_api.keep_freed_memory()
        name = "model"
        if model is None:
            model, name = self._load(config, files)
        self._model = model
        self._take_memory(config)
        max_rows = max(config.scheduler.token_budget(str(self.device)), WARM_UP_TOKENS)
        self._executor = make_executor(
            model,
            self._kv,
            self.device,
            max_rows=max_rows,
            max_model_len=self._max_model_len,
            threads=threads,
        )
        self._info = self._describe(config, name)
        self._batch = Batch(
            config.scheduler.max_num_seqs, self._info.max_model_len, self._capacity.block_size
        )
        self._sampling = RowSampling(
            self._executor.sampler,
            config.scheduler.max_num_seqs,
            self._info.eos_token_ids,
            self._info.vocab_size,
        )
        self._pools = Pools()
        self._warm_up()
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
        self._kv.clear()
        del self._executor, self._model

    # ---- start

    def _load(self, config: EngineConfig, files: ModelFiles | None) -> tuple[Model, str]:
        from pellucid.load.hub import resolve
        from pellucid.load.model_config import load_config
        from pellucid.load.quantized import quantized
        from pellucid.load.weights import open_weights

        files = resolve(config.model) if files is None else files
        model_config = load_config(files)
        limit = model_len_limit(model_config, config.model.max_model_len)
        ops = _select_ops(config.runner.kernels, self.device, model_config.head_dim)
        weights = quantized(open_weights(files, model_config), config.model.quantization)
        try:
            model = build_model(model_config, weights, ops, self._dtype, self.device, limit)
        finally:
            weights.close()
        return model, files.name

    def _take_memory(self, config: EngineConfig) -> None:
        """Size and allocate the KV pool, and settle how long a context may be."""
        shape, asked = self._model.config, config.model.max_model_len
        block_size = config.cache.block_size
        limit = model_len_limit(shape, asked)
        dtype = device_api.pick_kv_dtype(
            config.cache.kv_cache_dtype, self._dtype, self._model.ops.name
        )
        head_bytes = kv_head_bytes(shape.head_dim, dtype)
        block_bytes = kv_block_bytes(shape, block_size, head_bytes)
        num_blocks = kv_pool_blocks(
            config.cache,
            block_bytes,
            device_api.available_memory(self.device),
            config.scheduler.max_num_seqs,
            limit,
        )
        self._max_model_len = fit_model_len(limit, asked, num_blocks, block_size)
        self._capacity = KVCapacity(num_blocks, block_size, block_bytes)
        self._kv = allocate_kv(
            shape.num_layers,
            num_blocks,
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
            weight_bytes=ops.weight_bytes or num_parameters * self._dtype.itemsize,
            num_parameters=num_parameters,
            hidden_size=shape.hidden_size,
        )

    def _warm_up(self) -> None:
        """Run a prompt and one more token, so that the first request meets warm code and memory."""
        capacity = self._capacity.num_blocks * self._capacity.block_size
        length = min(WARM_UP_TOKENS, capacity - 1, self._max_model_len - 1)
        if length < 1:
            return
        blocks = list(range(-(-(length + 1) // self._capacity.block_size)))
        params = SamplingParams(top_p=0.9, top_k=50, seed=0)
        result = self.execute(
            StepPlan(
                step=-2,
                new_rows=[NewRow("warm-up", [0] * length, length, params)],
                chunks=[Chunk("warm-up", 0, length, True, blocks)],
            )
        ).result()
        if result.errors:
            raise ModelError(f"the model's logits are not finite in {self._info.dtype}")
        self.execute(StepPlan(step=-1, chunks=[Chunk("warm-up", length, 1, True, [])])).result()
        self._forget("warm-up")

    # ---- a step

    def execute(self, plan: StepPlan) -> PendingStep:
        """Drop rows, make rows, launch the forward pass of the plan's chunks.

        Chunks of requests that pool have a pass of their own, which ends before the head.

        Raises:
            ValueError: a chunk reaches beyond what its request knows or holds.
        """
        begin = time.monotonic()
        for request_id in plan.dropped:
            self._forget(request_id)
        for new in plan.new_rows:
            row = self._batch.add(new)
            if new.pooling is None:
                self._sampling.add(row, new)
            else:
                self._pools.add(new.request_id, new.pooling, new.num_prompt_tokens)
        if not self._pools:
            return self._launch(plan, begin)
        pooling, rest = self._pools.split(plan)
        if not pooling:
            return self._launch(plan, begin)
        step = self._batch.gather(pooling)
        states = self._executor.hidden(step, self._pools.wanted(pooling, step))
        return PoolingStep(plan, self._pools, pooling, states, self._launch(rest, begin))

    def _launch(self, plan: StepPlan, begin: float) -> PendingTorchStep:
        step = self._batch.gather(plan.chunks)
        work = self._work(plan, step)
        forward = self._executor.launch(step, work.wanted) if plan.chunks else None
        return PendingTorchStep(self, plan, work, forward, begin)

    def _forget(self, request_id: str) -> None:
        self._pools.drop(request_id)
        row = self._batch.drop(request_id)
        if row is not None:
            self._sampling.drop(row)

    def _work(self, plan: StepPlan, step: StepRows) -> StepWork:
        """What is to be done with the logits of a step."""
        sampling = [index for index, chunk in enumerate(plan.chunks) if chunk.samples]
        rows, ends = step.rows, step.query_start[1:]
        if len(sampling) < len(plan.chunks):
            rows, ends = rows[sampling], ends[sampling]
        wanted = [ends.astype(np.int64) - 1]
        prompts = []
        for index, num_top in self._sampling.prompt_logprobs(step.rows):
            chunk, row = plan.chunks[index], step.rows[index]
            # The logits at a position are of the token at the next one.
            end = min(chunk.start + chunk.num_tokens, int(self._batch.num_prompt_tokens[row]) - 1)
            targets = self._batch.known_tokens(row)[chunk.start + 1 : end + 1].astype(np.int64)
            prompts.append(PromptLogprobs(index, sum(map(len, wanted)), targets, num_top))
            wanted.append(step.query_start[index] + np.arange(len(targets)))
        return StepWork(sampling, rows, prompts, np.concatenate(wanted) if prompts else wanted[0])

    def finish(
        self, plan: StepPlan, work: StepWork, forward: Forward | None, begin: float
    ) -> StepResult:
        """Sample for the chunks that ask, and append the tokens to their rows."""
        count = len(plan.chunks)
        result = StepResult([[] for _ in range(count)], [None] * count, [None] * count)
        if forward is not None:
            self._sample(plan, work, forward, result)
            self._prompt_logprobs(work, forward, result)
        result.forward_seconds = time.monotonic() - begin - result.sample_seconds
        return result

    def _sample(self, plan: StepPlan, work: StepWork, forward: Forward, result: StepResult) -> None:
        rows = work.rows
        if not len(rows):
            return
        logits = forward.logits(0, len(rows))
        device_api.synchronize(self.device)
        computed = time.monotonic()
        choice = self._sampling.choose(logits, rows, self._batch)
        chunks, tokens = work.sampling, choice.token_ids.tolist()
        for index, token, entry in zip(chunks, tokens, choice.logprobs, strict=True):
            result.token_ids[index] = [token]
            result.logprobs[index] = None if entry is None else [entry]
        for place, error in choice.errors.items():
            result.errors[plan.chunks[chunks[place]].request_id] = error
            result.token_ids[chunks[place]], result.logprobs[chunks[place]] = [], None
        # Whoever has no token gets a meaningless one, and leaves before the next step.
        self._batch.append(rows, choice.token_ids)
        result.sample_seconds = time.monotonic() - computed

    def _prompt_logprobs(self, work: StepWork, forward: Forward, result: StepResult) -> None:
        for prompt in work.prompts:
            entries: list[TokenLogprobs] = []
            for at in range(0, len(prompt.targets), PROMPT_LOGPROB_ROWS):
                part = prompt.targets[at : at + PROMPT_LOGPROB_ROWS]
                logits = forward.logits(prompt.first + at, prompt.first + at + len(part))
                entries += self._sampling.describe(logits, part, [prompt.num_top] * len(part))
            result.prompt_logprobs[prompt.index] = entries


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """A chunk whose prompt tokens are to be scored."""

    index: int  # of the chunk
    first: int  # of its rows among the wanted ones
    targets: Ints  # the token behind each of them
    num_top: int


@dataclass(frozen=True, slots=True)
class StepWork:
    """Which logits a step is computed for: first those to sample from, then those of prompts."""

    sampling: list[int]  # indices of the chunks that sample
    rows: Ints  # of their requests
    prompts: list[PromptLogprobs]
    wanted: Ints  # rows of the step


class PendingTorchStep:
    """A step whose forward pass was launched. Implements `PendingStep`."""

    def __init__(
        self,
        runner: TorchRunner,
        plan: StepPlan,
        work: StepWork,
        forward: Forward | None,
        begin: float,
    ) -> None:
        self._runner = runner
        self._plan = plan
        self._work = work
        self._forward = forward
        self._begin = begin

    def result(self) -> StepResult:
        """Wait for the forward pass, sample, and report."""
        return self._runner.finish(self._plan, self._work, self._forward, self._begin)


def _select_ops(kernels: str, device: torch.device, head_dim: int) -> ReferenceOps:
    try:
        return select_ops(kernels, device, head_dim)
    except KernelsUnavailable as error:
        raise ConfigError(str(error), param="kernels") from None
