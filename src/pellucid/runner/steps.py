"""A step around its forward pass: rows, whose logits are wanted, sampling, the result.

What computes the logits is an `Executor` (`runner/executor.py`); all else is the same for each of
them, and here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pellucid.errors import ModelError
from pellucid.messages import EngineInfo, TokenLogprobs
from pellucid.runner import device as device_api
from pellucid.runner.base import Chunk, NewRow, PendingStep, Runner, StepPlan, StepResult
from pellucid.runner.batch import UNKNOWN, Batch, Ints, StepRows
from pellucid.runner.executor import Executor, Forward, Likeliest
from pellucid.runner.pooling import PoolingStep, Pools
from pellucid.runner.sampling import Draw, RowSampling
from pellucid.sample.transfer import to_device
from pellucid.sampling_params import SamplingParams

# Prompt logprobs are computed for so many tokens at a time: logits of a whole prompt over a large
# vocabulary would take gigabytes.
PROMPT_LOGPROB_ROWS = 64
WARM_UP_TOKENS = 32
# Where kernels are compiled when they are first used, which takes seconds: a prompt of more than
# one partition of attention, and more than one tile of every product.
WARM_UP_COMPILED = 300
# How the warm-up samples. The first is what most requests pass through; all of them together meet
# every kernel of Triton's sampler.
WARM_UP_SAMPLING = (
    SamplingParams(top_p=0.9, top_k=50, seed=0),
    SamplingParams(seed=0),
    SamplingParams(
        temperature=0.0,
        logprobs=1,
        presence_penalty=0.1,
        logit_bias={0: 1.0},
        allowed_token_ids=[0, 1],
        bad_words_token_ids=[[1]],
    ),
)


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
        self._last: PendingForward | PoolingStep | None = None  # whose tokens are to be drawn

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

    def settle(self) -> None:
        """Draw the tokens of the step before, if that has not been done. Before rows change."""
        if self._last is not None:
            self._last.draw()
            self._last = None

    def launch(self, plan: StepPlan, begin: float) -> PendingStep:
        """Launch the forward pass of the plan's chunks; the step began at `begin`.

        Chunks of requests that pool have a pass of their own, which ends before the head.
        """
        pooling: list[Chunk] = []
        rest = plan
        if self.pools:
            pooling, rest = self.pools.split(plan)
        if not pooling:
            self._last = self._launch(plan, begin)
            return self._last
        step = self.batch.gather(pooling)
        states = self._executor.hidden(step, self.pools.wanted(pooling, step))
        self._last = PoolingStep(plan, self.pools, pooling, states, self._launch(rest, begin))
        return self._last

    def _launch(self, plan: StepPlan, begin: float) -> PendingForward:
        step = self.batch.gather(plan.chunks)
        work = self._work(plan, step)
        return PendingForward(self, plan, work, self._start(step, work), begin)

    def _start(self, step: StepRows, work: StepWork) -> Forward | Likeliest | None:
        if not len(step.rows):
            return None
        found: Likeliest | None = None
        if not work.prompts and self._sampling.is_plain(work.rows):
            found = self._executor.likeliest(step, work.wanted)
        return found or self._executor.launch(step, work.wanted)

    def _work(self, plan: StepPlan, step: StepRows) -> StepWork:
        """What is to be done with the logits of a step."""
        sampling = [index for index, chunk in enumerate(plan.chunks) if chunk.samples]
        rows, ends = step.rows, step.query_start[1:]
        if len(sampling) < len(plan.chunks):
            rows, ends = rows[sampling], ends[sampling]
        last = ends.astype(np.int64) - 1
        drafts = Drafts([plan.chunks[index].drafts for index in sampling])
        wanted = drafts.wanted(last)
        prompts = []
        for index, num_top in self._sampling.prompt_logprobs(step.rows):
            chunk, row = plan.chunks[index], step.rows[index]
            # The logits at a position are of the token at the next one.
            end = min(chunk.start + chunk.num_tokens, int(self.batch.num_prompt_tokens[row]) - 1)
            targets = self.batch.known_tokens(row)[chunk.start + 1 : end + 1].astype(np.int64)
            prompts.append(PromptLogprobs(index, sum(map(len, wanted)), targets, num_top))
            wanted.append(step.query_start[index] + np.arange(len(targets)))
        every = np.concatenate(wanted) if len(wanted) > 1 else wanted[0]
        return StepWork(sampling, rows, prompts, every, drafts)

    def draw(
        self, work: StepWork, forward: Forward | Likeliest, result: StepResult, *, wait: bool
    ) -> Draw | None:
        """Draw a token for each of the chunks that ask; score the prompts that ask.

        Afterwards the step's logits are not needed any more, and every row's number of tokens is
        right, if not yet its tokens. `wait` for the forward pass, so as to time what comes after.
        """
        rows, drawn = work.rows, None
        if len(rows):
            drawn_from = _slice(forward, 0, len(rows))
            if wait:
                device_api.synchronize(self._device)
            computed = time.monotonic()
            drawn = self._draw(drawn_from, rows)
            if drawn.on_device is None:
                self.batch.append(rows, drawn.token_ids)
            else:
                self._executor.remember(rows, drawn.on_device)
                self.batch.append(rows, np.full(len(rows), UNKNOWN))
            result.sample_seconds = time.monotonic() - computed
        for prompt in work.prompts:
            assert not isinstance(forward, Likeliest)
            self._prompt_logprobs(prompt, forward, result)
        return drawn

    def _draw(self, drawn_from: Any | Likeliest, rows: Ints) -> Draw:
        if isinstance(drawn_from, Likeliest):
            return self._sampling.take(drawn_from, rows, self.batch)
        return self._sampling.draw(drawn_from, rows, self.batch)

    def finish(self, plan: StepPlan, work: StepWork, drawn: Draw, result: StepResult) -> None:
        """Put what was drawn into the result, and into the rows if that was not possible before."""
        choice = self._sampling.choose(drawn)
        chunks, tokens = work.sampling, choice.token_ids.tolist()
        for index, token, entry in zip(chunks, tokens, choice.logprobs, strict=True):
            result.token_ids[index] = [token]
            result.logprobs[index] = None if entry is None else [entry]
        for place, error in choice.errors.items():
            result.errors[plan.chunks[chunks[place]].request_id] = error
            result.token_ids[chunks[place]], result.logprobs[chunks[place]] = [], None
        # Whoever has no token has a meaningless one, and leaves.
        self.batch.fill(work.rows, drawn.places, choice.token_ids)

    def check_drafts(
        self, work: StepWork, forward: Forward | Likeliest, result: StepResult
    ) -> None:
        """Where the token that was drawn is the draft, draw the one behind it; and so on.

        A round draws behind one more draft, for all rows that are right so far. What it draws may
        depend on the rounds before: on penalties, on a grammar.
        """
        for depth, places in enumerate(work.drafts.rounds):
            tokens = [result.token_ids[work.sampling[place]] for place in places]
            right = [
                i
                for i, place in enumerate(places)
                if tokens[i][depth:] == work.drafts.tokens[place][depth : depth + 1]
            ]
            if not right:
                return
            first = work.drafts.first_of(depth)
            drawn_from = _slice(forward, first, first + len(places))
            rows = work.rows[[places[i] for i in right]]
            drawn = self._draw(_rows(drawn_from, right), rows)
            choice = self._sampling.choose(drawn)
            # A row without a token is drawn again as the next step's first, and then says why.
            told = [k for k in range(len(rows)) if k not in choice.errors]
            self.batch.append(rows[told], choice.token_ids[told])
            for k in told:
                index = work.sampling[places[right[k]]]
                result.token_ids[index].append(int(choice.token_ids[k]))
                logprobs, entry = result.logprobs[index], choice.logprobs[k]
                if logprobs is not None and entry is not None:
                    logprobs.append(entry)

    def _prompt_logprobs(
        self, prompt: PromptLogprobs, forward: Forward, result: StepResult
    ) -> None:
        entries: list[TokenLogprobs] = []
        for at in range(0, len(prompt.targets), PROMPT_LOGPROB_ROWS):
            part = prompt.targets[at : at + PROMPT_LOGPROB_ROWS]
            logits = forward.logits(prompt.first + at, prompt.first + at + len(part))
            entries += self._sampling.describe(logits, part, [prompt.num_top] * len(part))
        result.prompt_logprobs[prompt.index] = entries


def _slice(forward: Forward | Likeliest, begin: int, end: int) -> Any | Likeliest:
    """What the tokens of some of the wanted rows are drawn from."""
    return forward[begin:end] if isinstance(forward, Likeliest) else forward.logits(begin, end)


def _rows(drawn_from: Any | Likeliest, rows: list[int]) -> Any | Likeliest:
    """Some rows of it, for which the host does not wait."""
    if isinstance(drawn_from, torch.Tensor):
        return drawn_from[to_device(np.array(rows), drawn_from.device)]
    return drawn_from[rows]


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """A chunk whose prompt tokens are to be scored."""

    index: int  # of the chunk
    first: int  # of its rows among the wanted ones
    targets: Ints  # the token behind each of them
    num_top: int


class Drafts:
    """What is guessed of each row that samples, and where the logits behind it lie.

    The logits to sample from come first, a row each; then those behind the first drafts, of the
    rows that have one; then those behind the second; and so on.
    """

    def __init__(self, tokens: list[list[int]]) -> None:
        self.tokens = tokens
        # Of each round, the places of the rows that have a draft to check.
        self.rounds = [
            [place for place, drafts in enumerate(tokens) if len(drafts) > depth]
            for depth in range(max(map(len, tokens), default=0))
        ]

    def wanted(self, last: Ints) -> list[Ints]:
        """The rows of the step whose logits are used; `last` holds the last one of each chunk."""
        if not self.rounds:
            return [last]
        known = last - np.array([len(drafts) for drafts in self.tokens], np.int64)
        return [known, *(known[places] + depth for depth, places in enumerate(self.rounds, 1))]

    def first_of(self, depth: int) -> int:
        """Where the logits of a round begin among the wanted ones."""
        return len(self.tokens) + sum(map(len, self.rounds[:depth]))


@dataclass(frozen=True, slots=True)
class StepWork:
    """Which logits a step is computed for: first those to sample from, then those of prompts."""

    sampling: list[int]  # indices of the chunks that sample
    rows: Ints  # of their requests
    prompts: list[PromptLogprobs]
    wanted: Ints  # rows of the step
    drafts: Drafts


class PendingForward:
    """A step whose forward pass was launched. Implements `PendingStep`."""

    def __init__(
        self,
        steps: Steps,
        plan: StepPlan,
        work: StepWork,
        forward: Forward | Likeliest | None,
        begin: float,
    ) -> None:
        count = len(plan.chunks)
        self._result = StepResult([[] for _ in range(count)], [None] * count, [None] * count)
        self._steps = steps
        self._plan = plan
        self._forward = forward
        self._begin = begin
        self._drawn: Draw | None = None
        self._work = work

    def draw(self, *, wait: bool = False) -> None:
        """Draw the step's tokens, if that has not been done; they may still be on their way."""
        if self._forward is not None:
            self._drawn = self._steps.draw(self._work, self._forward, self._result, wait=wait)
            self._forward = None

    def result(self) -> StepResult:
        """Wait for the forward pass, sample, and report."""
        result, forward = self._result, self._forward
        self.draw(wait=True)
        if self._drawn is not None:
            begin = time.monotonic()
            self._steps.finish(self._plan, self._work, self._drawn, result)
            self._drawn = None  # its logits are large
            if forward is not None:
                self._steps.check_drafts(self._work, forward, result)
            result.sample_seconds += time.monotonic() - begin
        result.forward_seconds = time.monotonic() - self._begin - result.sample_seconds
        return result


def warm_up(runner: Runner, *, compiles: bool = False) -> None:
    """Run a prompt and one more token, so that the first request meets warm code and memory.

    Args:
        compiles: kernels are, when they are first used; meet all of them.

    Raises:
        ModelError: the model computes nothing finite.
    """
    info, size = runner.info(), runner.kv_capacity().block_size
    capacity = runner.kv_capacity().num_blocks * size
    most = WARM_UP_COMPILED if compiles else WARM_UP_TOKENS
    length = min(most, capacity - 1, info.max_model_len - 1)
    if length < 1:
        return
    blocks = list(range(-(-(length + 1) // size)))

    def first_step(length: int, params: SamplingParams) -> StepResult:
        row = NewRow("warm-up", [0] * length, length, params)
        chunk = Chunk("warm-up", 0, length, True, blocks)
        return runner.execute(StepPlan(step=-3, new_rows=[row], chunks=[chunk])).result()

    if first_step(length, WARM_UP_SAMPLING[0]).errors:
        raise ModelError(f"the model's logits are not finite in {info.dtype}")
    runner.execute(StepPlan(step=-2, chunks=[Chunk("warm-up", length, 1, True, [])])).result()
    runner.execute(StepPlan(step=-1, dropped=["warm-up"])).result()
    for params in WARM_UP_SAMPLING[1:] if compiles else ():
        first_step(1, params)
        runner.execute(StepPlan(step=-1, dropped=["warm-up"])).result()
