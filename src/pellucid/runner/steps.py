"""A step around its forward pass: rows, whose logits are wanted, sampling, the result.

What computes the logits is an `Executor` (`runner/executor.py`); all else is the same for each of
them, and here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from pellucid.errors import ModelError
from pellucid.messages import EngineInfo, TokenLogprobs
from pellucid.runner import device as device_api
from pellucid.runner.base import Chunk, NewRow, PendingStep, Runner, StepPlan, StepResult
from pellucid.runner.batch import Batch, Ints, StepRows
from pellucid.runner.executor import Executor, Forward
from pellucid.runner.pooling import PoolingStep, Pools
from pellucid.runner.sampling import RowSampling
from pellucid.sampling_params import SamplingParams

# Prompt logprobs are computed for so many tokens at a time: logits of a whole prompt over a large
# vocabulary would take gigabytes.
PROMPT_LOGPROB_ROWS = 64
WARM_UP_TOKENS = 32


class Steps:
    """Rows of the running requests, and the steps that are made of them."""

    def __init__(
        self, executor: Executor, info: EngineInfo, max_num_seqs: int, device: torch.device
    ) -> None:
        self.batch = Batch(max_num_seqs, info.max_model_len, info.block_size)
        self.pools = Pools()
        self._sampling = RowSampling(
            executor.sampler, max_num_seqs, info.eos_token_ids, info.vocab_size
        )
        self._executor = executor
        self._device = device

    def add(self, new: NewRow) -> int:
        """Make a row for a request and return it."""
        row = self.batch.add(new)
        if new.pooling is None:
            self._sampling.add(row, new)
        else:
            self.pools.add(new.request_id, new.pooling, new.num_prompt_tokens)
        return row

    def drop(self, request_id: str) -> int | None:
        """Forget a request and return the row that it had; None if it had none."""
        self.pools.drop(request_id)
        row = self.batch.drop(request_id)
        if row is not None:
            self._sampling.drop(row)
        return row

    def launch(self, plan: StepPlan, begin: float) -> PendingStep:
        """Launch the forward pass of the plan's chunks; the step began at `begin`.

        Chunks of requests that pool have a pass of their own, which ends before the head.
        """
        pooling: list[Chunk] = []
        rest = plan
        if self.pools:
            pooling, rest = self.pools.split(plan)
        if not pooling:
            return self._launch(plan, begin)
        step = self.batch.gather(pooling)
        states = self._executor.hidden(step, self.pools.wanted(pooling, step))
        return PoolingStep(plan, self.pools, pooling, states, self._launch(rest, begin))

    def _launch(self, plan: StepPlan, begin: float) -> PendingForward:
        step = self.batch.gather(plan.chunks)
        work = self._work(plan, step)
        forward = self._executor.launch(step, work.wanted) if plan.chunks else None
        return PendingForward(self, plan, work, forward, begin)

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
            end = min(chunk.start + chunk.num_tokens, int(self.batch.num_prompt_tokens[row]) - 1)
            targets = self.batch.known_tokens(row)[chunk.start + 1 : end + 1].astype(np.int64)
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
        device_api.synchronize(self._device)
        computed = time.monotonic()
        choice = self._sampling.choose(logits, rows, self.batch)
        chunks, tokens = work.sampling, choice.token_ids.tolist()
        for index, token, entry in zip(chunks, tokens, choice.logprobs, strict=True):
            result.token_ids[index] = [token]
            result.logprobs[index] = None if entry is None else [entry]
        for place, error in choice.errors.items():
            result.errors[plan.chunks[chunks[place]].request_id] = error
            result.token_ids[chunks[place]], result.logprobs[chunks[place]] = [], None
        # Whoever has no token gets a meaningless one, and leaves before the next step.
        self.batch.append(rows, choice.token_ids)
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


@dataclass(frozen=True, slots=True)
class PendingForward:
    """A step whose forward pass was launched. Implements `PendingStep`."""

    steps: Steps
    plan: StepPlan
    work: StepWork
    forward: Forward | None
    begin: float

    def result(self) -> StepResult:
        """Wait for the forward pass, sample, and report."""
        return self.steps.finish(self.plan, self.work, self.forward, self.begin)


def warm_up(runner: Runner) -> None:
    """Run a prompt and one more token, so that the first request meets warm code and memory.

    Raises:
        ModelError: the model computes nothing finite.
    """
    info, size = runner.info(), runner.kv_capacity().block_size
    capacity = runner.kv_capacity().num_blocks * size
    length = min(WARM_UP_TOKENS, capacity - 1, info.max_model_len - 1)
    if length < 1:
        return
    blocks = list(range(-(-(length + 1) // size)))
    params = SamplingParams(top_p=0.9, top_k=50, seed=0)
    row = NewRow("warm-up", [0] * length, length, params)
    chunk = Chunk("warm-up", 0, length, True, blocks)
    result = runner.execute(StepPlan(step=-3, new_rows=[row], chunks=[chunk])).result()
    if result.errors:
        raise ModelError(f"the model's logits are not finite in {info.dtype}")
    runner.execute(StepPlan(step=-2, chunks=[Chunk("warm-up", length, 1, True, [])])).result()
    runner.execute(StepPlan(step=-1, dropped=["warm-up"])).result()
