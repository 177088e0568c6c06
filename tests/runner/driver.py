"""Drives a runner by hand, as a scheduler would, over scattered blocks."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from pellucid.messages import TokenLogprobs
from pellucid.runner.base import Chunk, NewRow, Runner, StepPlan
from pellucid.sampling_params import SamplingParams


@dataclass
class Job:
    """One request and what came of it."""

    prompt: list[int]
    params: SamplingParams
    num_tokens: int  # to generate
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    error: str | None = None
    computed: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def known(self) -> list[int]:
        return self.prompt + self.tokens

    @property
    def done(self) -> bool:
        return len(self.tokens) == self.num_tokens or self.error is not None


class Driver:
    def __init__(self, runner: Runner, seed: int = 0) -> None:
        self.runner = runner
        capacity = runner.kv_capacity()
        self.block_size = capacity.block_size
        self.free = list(range(capacity.num_blocks))
        random.Random(seed).shuffle(self.free)
        self.present: set[str] = set()
        self.dropped: list[str] = []
        self.step = 0

    def run(
        self, jobs: dict[str, Job], chunk: int = 10_000, preempt_at: int | None = None
    ) -> dict[str, Job]:
        """Run all jobs to their end, at most `chunk` tokens each per step.

        With `preempt_at`, every job loses its row and blocks once it has generated so many tokens.
        """
        preempted: set[str] = set()
        while open_jobs := {name: job for name, job in jobs.items() if not job.done}:
            for name, job in open_jobs.items():
                if len(job.tokens) == preempt_at and name not in preempted:
                    preempted.add(name)
                    self.drop(name, job)
            self._step(open_jobs, chunk)
        for name, job in jobs.items():
            self.drop(name, job)
        return jobs

    def drop(self, name: str, job: Job) -> None:
        self.dropped.append(name)
        self.present.discard(name)
        self.free = job.blocks + self.free
        job.blocks, job.computed = [], 0

    def _step(self, jobs: dict[str, Job], chunk: int) -> None:
        plan = StepPlan(step=self.step, dropped=self.dropped)
        self.step, self.dropped = self.step + 1, []
        for name, job in jobs.items():
            if name not in self.present:
                self.present.add(name)
                plan.new_rows.append(NewRow(name, job.known, len(job.prompt), job.params))
            count = min(chunk, len(job.known) - job.computed)
            end = job.computed + count
            needed = -(-end // self.block_size) - len(job.blocks)
            new = [self.free.pop() for _ in range(needed)]
            job.blocks += new
            plan.chunks.append(Chunk(name, job.computed, count, end == len(job.known), new))
        result = self.runner.execute(plan).result()
        for index, (name, job) in enumerate(jobs.items()):
            job.computed += plan.chunks[index].num_tokens
            job.error = result.errors.get(name)
            if not job.tokens:
                job.prompt_logprobs += result.prompt_logprobs[index] or []
            job.tokens += result.token_ids[index]
            job.logprobs += result.logprobs[index] or []
