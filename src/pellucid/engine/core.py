"""The engine's heart: one step at a time, from plan to tokens."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from copy import copy

import msgspec

from pellucid.config import CacheSettings, SchedulerSettings
from pellucid.engine.adapters import Adapters, names_of
from pellucid.engine.drafting import Drafting
from pellucid.engine.grammars import GrammarQueue
from pellucid.engine.kv_cache import KVCacheManager
from pellucid.engine.policy import load_policy
from pellucid.engine.recorder import Recorder, StepTimes
from pellucid.engine.request import Request
from pellucid.engine.scheduler import Counters, Scheduler
from pellucid.messages import (
    Abort,
    AdapterOutcome,
    AddRequest,
    Command,
    LoadAdapter,
    StepOutput,
    StepStats,
    TokenDelta,
    UnloadAdapter,
    Vocabulary,
)
from pellucid.runner.base import Runner, StepPlan, StepResult


class EngineCore:
    """Scheduler and runner joined: requests in, tokens out. Single-threaded, no I/O.

    >>> while core.has_work:
    ...     output = core.step()
    """

    def __init__(
        self,
        runner: Runner,
        cache: CacheSettings,
        scheduler: SchedulerSettings,
        drafting: Drafting | None = None,
    ) -> None:
        self.runner = runner
        self.info = msgspec.structs.replace(runner.info(), pid=os.getpid())
        capacity = runner.kv_capacity()
        kv = KVCacheManager(
            capacity.num_blocks, capacity.block_size, prefix_caching=cache.prefix_caching
        )
        self.scheduler = Scheduler(
            scheduler,
            kv,
            load_policy(scheduler.policy),
            scheduler.token_budget(self.info.device),
            drafting or Drafting.from_settings(scheduler, runner.drafter),
        )
        self._grammars = GrammarQueue(self.info)
        self._eos = frozenset(self.info.eos_token_ids)
        self._adapters = Adapters(runner)
        self._adapter_outcomes: list[AdapterOutcome] = []
        self._refused: list[TokenDelta] = []
        self._untold = False  # the state changed outside a step: the next one is made to tell it
        self._recorder = Recorder(self.scheduler)
        self._ended = time.monotonic()  # the step before

    @property
    def has_work(self) -> bool:
        can_run = len(self.scheduler.requests) > len(self._grammars) or self._grammars.has_ready
        return bool(can_run or self._refused or self._untold)

    @property
    def is_compiling(self) -> bool:
        """A grammar is on its way, which will be work."""
        return bool(self._grammars)

    def handle(self, command: Command) -> None:
        """Do what the front end says."""
        if isinstance(command, AddRequest):
            self.add(command)
        elif isinstance(command, Abort):
            self.abort(command.request_ids)
        elif isinstance(command, Vocabulary):
            self._grammars.learn(command)
        elif isinstance(command, LoadAdapter):
            self._adapter_outcomes.append(self._adapters.load(command))
            self._untold = True
        elif isinstance(command, UnloadAdapter):
            self._adapters.unload(command.adapter)
            self._untold = True
        else:
            self._recorder.listen(command)
            self._untold |= self._recorder.active  # an idle engine's snapshot does not wait

    def add(self, message: AddRequest) -> None:
        """Queue a request. What could never run ends with an "error" delta in the next step.

        The front end refuses such requests with a 400; this is the second lock on the door, since a
        bad id would reach native code and a prompt without room would wait for ever.
        """
        number = message.adapter
        request = Request(
            message,
            max_model_len=self.info.max_model_len,
            eos_token_ids=self._eos,
            adapter=None if number is None else self._adapters.find(number),
        )
        problem = self._problem(request)
        if number is not None and request.adapter is None:
            problem = "the adapter is not loaded"
        if problem is None:
            self.scheduler.add(request)
            if message.sampling.grammar is not None:
                self._grammars.request(request.request_id, message.sampling.grammar)
        else:
            self._refused.append(
                TokenDelta(
                    request_id=message.request_id,
                    token_ids=[],
                    finish_reason="error",
                    error=problem,
                    times=request.times,
                )
            )

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forget requests; their blocks are free when this returns."""
        self.scheduler.abort(request_ids)
        self._grammars.forget(request_ids)
        self._untold = True

    def step(self) -> StepOutput:
        """Plan, execute and account one step; without requests, only report the state."""
        begin = time.monotonic()
        before = copy(self.scheduler.counters)
        deltas = self._take_news(begin)
        plan = self._plan(begin)
        planned = time.monotonic()
        result: StepResult | None = None
        if plan.chunks:
            self.scheduler.begin(plan)
            result = self.runner.execute(plan).result()
            deltas += self.scheduler.update(plan, result, time.monotonic())
        stats = self._stats(plan, result, before, planned - begin)
        if self.scheduler.drafting is not None:
            self.scheduler.drafting.took(plan.chunks, stats.time - begin)
        return self._output(plan, deltas, stats, begin, planned)

    def _take_news(self, now: float) -> list[TokenDelta]:
        """What ends without a step: the refused, those whose grammar is no good, the expired."""
        deltas, self._refused = self._refused, []
        deltas += self._collect_grammars(now)
        expired = self.scheduler.expire(now)
        self._grammars.forget(delta.request_id for delta in expired)
        self._untold = False
        return deltas + expired

    def _plan(self, now: float) -> StepPlan:
        if self._recorder.active:
            self._recorder.planning()
        plan = self.scheduler.schedule(now)
        if self._recorder.active:
            self._recorder.planned(plan)
        return plan

    def _output(
        self,
        plan: StepPlan,
        deltas: list[TokenDelta],
        stats: StepStats,
        begin: float,
        planned: float,
    ) -> StepOutput:
        """What is told of a step; `plan` holds the chunks that had a result."""
        output = StepOutput(deltas=deltas, stats=stats, adapters=self._adapter_outcomes)
        self._adapter_outcomes = []
        self._adapters.sweep(self.scheduler.requests.values())
        if self._recorder.active:
            output.events = self._recorder.step(
                plan,
                deltas,
                StepTimes(
                    previous=self._ended,
                    begin=begin,
                    planned=planned,
                    end=stats.time,
                    forward_seconds=stats.forward_seconds,
                    sample_seconds=stats.sample_seconds,
                    draft_seconds=stats.draft_seconds,
                ),
            )
        self._ended = stats.time
        return output

    def _collect_grammars(self, now: float) -> list[TokenDelta]:
        """Let requests run whose grammar is ready; end those whose grammar is no good."""
        failed: list[TokenDelta] = []
        for request_id, outcome in self._grammars.take_ready():
            if isinstance(outcome, Exception):
                failed.append(self.scheduler.fail(request_id, f"the grammar: {outcome}", now))
            else:
                self.scheduler.make_ready(request_id, outcome)
        return failed

    def _problem(self, request: Request) -> str | None:
        if request.request_id in self.scheduler.requests:
            return f"request id {request.request_id} is in use"
        if request.num_prompt_tokens == 0:
            return "the prompt is empty"
        num_needed, what = (0, "them") if request.pooling else (1, "an answer")
        if request.num_prompt_tokens + num_needed > self.info.max_model_len:
            return (
                f"the prompt has {request.num_prompt_tokens} tokens; the model's context of "
                f"{self.info.max_model_len} leaves no room for {what}"
            )
        if not all(0 <= token < self.info.vocab_size for token in request.token_ids):
            return "the prompt has a token id outside the vocabulary"
        if request.max_total_tokens > self.scheduler.kv.capacity_tokens:
            return f"the KV pool holds only {self.scheduler.kv.capacity_tokens} tokens"
        return None

    def _stats(
        self,
        plan: StepPlan,
        result: StepResult | None,
        before: Counters,
        planning_seconds: float,
    ) -> StepStats:
        counters, drafting = self.scheduler.counters, self.scheduler.drafting
        draft_seconds = drafting.seconds if drafting is not None else 0.0
        checked = [(i, len(chunk.drafts)) for i, chunk in enumerate(plan.chunks) if chunk.drafts]
        running = names_of(self.scheduler.running.values()) if self._adapters else []
        waiting = names_of(self.scheduler.waiting.values()) if self._adapters else []
        return StepStats(
            step=plan.step,
            time=time.monotonic(),
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            kv_blocks_used=self.scheduler.kv.num_used,
            num_prompt_tokens=counters.prompt_tokens - before.prompt_tokens,
            num_generated_tokens=counters.generated_tokens - before.generated_tokens,
            num_preemptions=counters.preemptions - before.preemptions,
            prefix_queries=counters.prefix_queries - before.prefix_queries,
            prefix_hits=counters.prefix_hits - before.prefix_hits,
            schedule_seconds=planning_seconds - draft_seconds,
            forward_seconds=result.forward_seconds if result else 0.0,
            sample_seconds=result.sample_seconds if result else 0.0,
            num_deferred=sum(why == "prefix" for why in self.scheduler.stalls.values()),
            drafted=[num_drafts for _, num_drafts in checked],
            accepted=[max(0, len(result.token_ids[i]) - 1) for i, _ in checked] if result else [],
            draft_seconds=draft_seconds,
            running_adapters=running,
            waiting_adapters=waiting,
        )
