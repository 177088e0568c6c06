"""Each step, hand out tokens from one budget until computed catches up with known.

`schedule()` plans a step, `begin()` says that it is under way, `update()` takes its result. One
more step may be planned in between: a request then counts as if the step under way were done.

Those who run go first, decodes before prompts, so that a long prompt cannot stall a stream; then
whoever waits, in the policy's order, as long as there is budget, a row and memory. A request enters
with blocks for every token it already knows, so only the growth of answers can exhaust the pool;
then the policy names a victim, which gives up its blocks and waits to be computed again, mostly
from the prefix cache.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from pellucid.config import SchedulerSettings
from pellucid.engine.drafting import Drafting
from pellucid.engine.events import Wait
from pellucid.engine.kv_cache import KVCacheManager
from pellucid.engine.policy import SchedulingPolicy
from pellucid.engine.request import Request, Status
from pellucid.engine.watcher import Watcher
from pellucid.messages import FinishReason, TokenDelta
from pellucid.runner.base import Chunk, NewRow, StepPlan, StepResult

if TYPE_CHECKING:
    from pellucid.grammar.compiler import Grammar


class Counters(msgspec.Struct):
    """What was done since the start."""

    prompt_tokens: int = 0  # computed, again after a preemption if need be
    generated_tokens: int = 0
    preemptions: int = 0
    prefix_queries: int = 0  # tokens looked up at a request's first admission
    prefix_hits: int = 0  # of these, found


class Scheduler:
    """Decides what every step computes. Knows requests, blocks and limits; no tensors, no text."""

    def __init__(
        self,
        settings: SchedulerSettings,
        kv: KVCacheManager,
        policy: SchedulingPolicy,
        token_budget: int,
        drafting: Drafting | None = None,
    ) -> None:
        self.settings = settings
        self.token_budget = token_budget  # of one step
        self.kv = kv
        self.policy = policy
        self.drafting = drafting
        self.requests: dict[str, Request] = {}  # waiting and running
        self.waiting: dict[str, Request] = {}
        self.running: dict[str, Request] = {}  # in order of admission
        self.counters = Counters()
        self.watcher: Watcher | None = None
        # Why requests waited in the step planned last: some by name, all others for one reason.
        self.stalls: dict[str, Wait] = {}
        self.queue_waits_for: Wait | None = None
        self._dropped: list[str] = []  # rows the runner has yet to forget
        self._deadlines: list[tuple[float, str]] = []  # a heap; may name requests that are gone
        self._step = 0
        # The step being planned:
        self._budget = 0
        self._chunks: dict[str, Chunk] = {}
        self._new_rows: dict[str, NewRow] = {}
        self._preempted = False

    # ---- requests come and go

    def add(self, request: Request) -> None:
        self.requests[request.request_id] = request
        self.waiting[request.request_id] = request
        self.policy.enter(request)
        if self.watcher is not None:
            self.watcher.entered(request)
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, request.request_id))

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests and free their blocks at once; unknown ids are ignored."""
        for request_id in request_ids:
            request = self.requests.get(request_id)
            if request is not None:
                self._finish(request, "abort")

    def make_ready(self, request_id: str, grammar: Grammar) -> None:
        """The grammar that a request waited for is there."""
        request = self.requests[request_id]
        request.grammar, request.is_ready = grammar, True

    def fail(self, request_id: str, error: str, now: float) -> TokenDelta:
        """End a request that cannot go on."""
        request = self.requests[request_id]
        self._finish(request, "error", now)
        return request.delta([], error=error)

    def expire(self, now: float) -> list[TokenDelta]:
        """End the requests whose deadline has passed."""
        expired: list[TokenDelta] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, request_id = heapq.heappop(self._deadlines)
            request = self.requests.get(request_id)
            if request is not None and request.deadline == deadline:  # not one of the same name
                self._finish(request, "timeout", now)
                expired.append(request.delta([]))
        return expired

    # ---- planning a step

    def schedule(self, now: float) -> StepPlan:
        """Plan the next step. Block tables are extended here; counters advance in `update`.

        Before the result of a step under way, its tokens are expected but not known: who ends with
        one of them gets a share of this step for nothing, which `update` then ignores.
        """
        self._budget = self.token_budget
        self._chunks, self._new_rows, self._preempted = {}, {}, False
        self.stalls = {}
        self._schedule_running(now)
        if self._preempted:  # whoever stepped back this step needs the memory next step
            self.queue_waits_for = "blocks"
        else:
            self.queue_waits_for = self._schedule_waiting(now)
        if self.drafting is not None:
            self.drafting.extend(self._chunks, self.running, self.kv, self._budget)
        return self._build_plan()

    def _schedule_running(self, now: float) -> None:
        decodes: list[Request] = []
        prompts: list[Request] = []
        for request in self.running.values():
            (prompts if request.is_prefilling else decodes).append(request)
        for request in decodes + prompts:
            if self._budget == 0:
                break
            # Not preempted for an earlier one, nor at its end once the step under way is done.
            if request.status is Status.RUNNING and not request.is_ending:
                self._schedule_one_running(request, now)

    def _schedule_one_running(self, request: Request, now: float) -> None:
        start, num_new = request.next_start, self._affordable(request)
        end = start + num_new
        while (blocks := self.kv.allocate(request, end)) is None:
            victim = self.policy.victim(list(self.running.values()), now)
            self._preempt(victim)
            if victim is request:
                return
        self._put_chunk(request, start, num_new, blocks, now)

    def _schedule_waiting(self, now: float) -> Wait | None:
        """Admit who fits; returns what the others wait for, if they are not in `stalls`."""
        if not self.waiting:
            return None
        if len(self.running) >= self.settings.max_num_seqs:
            return "seats"
        for request in sorted(self.waiting.values(), key=lambda r: self.policy.order(r, now)):
            if self._budget == 0:
                return "budget"
            if len(self.running) >= self.settings.max_num_seqs:
                return "seats"
            if not request.is_ready:
                self.stalls[request.request_id] = "grammar"
                continue
            prefix = self.kv.find_prefix(request)
            if self.kv.is_in_progress(request, len(prefix)):
                self.stalls[request.request_id] = "prefix"
                continue
            blocks = self.kv.allocate(request, request.num_tokens, prefix)
            if blocks is None:  # no overtaking: smaller requests would starve a large one for ever
                self.stalls[request.request_id] = "blocks"
                return "turn"
            num_found = len(prefix) * self.kv.block_size
            self._admit(request, num_found)
            self._put_chunk(request, num_found, self._affordable(request), blocks, now)
        return None

    def _admit(self, request: Request, num_found: int) -> None:
        is_return = request.times.scheduled is not None
        if not is_return:  # a return from preemption is no answer from the cache
            request.num_cached_tokens = num_found
            self.counters.prefix_queries += request.num_tokens
            self.counters.prefix_hits += num_found
        request.num_computed_tokens = num_found
        request.status = Status.RUNNING
        del self.waiting[request.request_id]
        self.running[request.request_id] = request
        self._new_rows[request.request_id] = NewRow(
            request_id=request.request_id,
            token_ids=list(request.token_ids),
            num_prompt_tokens=request.num_prompt_tokens,
            sampling=request.sampling,
            grammar=request.grammar,
            pooling=request.pooling,
            adapter=None if request.adapter is None else request.adapter.number,
        )
        if self.watcher is not None:
            self.watcher.admitted(request, num_found, is_return=is_return)

    def _affordable(self, request: Request) -> int:
        left = request.num_expected_tokens - request.next_start
        return min(left, self._budget, self.settings.max_chunk_tokens)

    def _put_chunk(
        self, request: Request, start: int, num_new: int, blocks: list[int], now: float
    ) -> None:
        self._budget -= num_new
        self.policy.charge(request, num_new)
        if request.times.scheduled is None:
            request.times.scheduled = now
        self._chunks[request.request_id] = Chunk(
            request_id=request.request_id,
            start=start,
            num_tokens=num_new,
            samples=start + num_new == request.num_expected_tokens and request.pooling is None,
            new_block_ids=blocks,
        )

    def _preempt(self, request: Request) -> None:
        chunk = self._chunks.pop(request.request_id, None)  # it may have been planned already
        if chunk is not None:
            self._budget += chunk.num_tokens
            self.policy.charge(request, -chunk.num_tokens)
        if self.watcher is not None:
            self.watcher.preempted(request)
        if self.drafting is not None:
            self.drafting.drafter.forget(request.request_id)
        self.kv.free(request)
        request.num_computed_tokens = 0
        request.status = Status.WAITING
        if request.num_expected_tokens == request.num_prompt_tokens:
            request.prompt_logprobs = [None]
        request.times.num_preemptions += 1
        self.counters.preemptions += 1
        self._preempted = True
        del self.running[request.request_id]
        self.waiting[request.request_id] = request
        self._dropped.append(request.request_id)

    def _build_plan(self) -> StepPlan:
        plan = StepPlan(
            step=self._step,
            dropped=self._dropped,
            new_rows=list(self._new_rows.values()),
            chunks=list(self._chunks.values()),
        )
        if plan.chunks:  # an empty plan is not executed: what was dropped waits for the next
            self._step += 1
            self._dropped = []
        return plan

    # ---- taking a step's result

    def begin(self, plan: StepPlan) -> None:
        """The step is under way; the one before it is not any more."""
        for chunk in plan.chunks:
            request = self.running.get(chunk.request_id)
            if request is not None:
                request.under_way = chunk

    def awaiting(self, chunk: Chunk) -> Request | None:
        """The chunk's request, if that is still here to take the result."""
        request = self.requests.get(chunk.request_id)
        return None if request is None or request.under_way is not chunk else request

    def update(self, plan: StepPlan, result: StepResult, now: float) -> list[TokenDelta]:
        """Advance the counters, name finished blocks, append tokens, end what has come to its end.

        Returns one delta per request that got a token or ended.
        """
        deltas: list[TokenDelta] = []
        self.kv.forget(result.lost_blocks)
        for index, chunk in enumerate(plan.chunks):
            request = self.awaiting(chunk)
            if request is None:
                continue
            request.under_way = None
            end = chunk.start + chunk.num_tokens - len(chunk.drafts)
            if chunk.start < request.num_prompt_tokens:
                self.counters.prompt_tokens += min(end, request.num_prompt_tokens) - chunk.start
            # Who was preempted while the step was under way keeps nothing of it but its token.
            if request.status is Status.RUNNING:
                request.num_computed_tokens = end
                self.kv.commit(request)
            if request.request_id in result.errors:
                self._finish(request, "error", now)
                deltas.append(request.delta([], error=result.errors[request.request_id]))
                continue
            prompt_logprobs = result.prompt_logprobs[index]
            kept = request.status is Status.RUNNING or chunk.samples
            if prompt_logprobs and kept and request.num_output_tokens == 0:
                request.prompt_logprobs.extend(prompt_logprobs)
            if chunk.samples:
                deltas.append(self._take_tokens(request, result, index, now))
                if chunk.drafts:
                    self._take_drafts(request, chunk, len(result.token_ids[index]))
            elif request.pooling and end == request.num_tokens:
                self._finish(request, "stop", now)
                deltas.append(request.delta([]))
                deltas[-1].embedding = result.embeddings[request.request_id]
        return deltas

    def _take_tokens(
        self, request: Request, result: StepResult, index: int, now: float
    ) -> TokenDelta:
        first = request.num_output_tokens == 0
        tokens: list[int] = []
        for token in result.token_ids[index]:
            tokens.append(token)
            if request.append(token):
                break
        self.counters.generated_tokens += len(tokens)
        if request.times.first_token is None:
            request.times.first_token = now
        if request.finish_reason is not None:
            self._finish(request, request.finish_reason, now)
        delta = request.delta(tokens)
        if (logprobs := result.logprobs[index]) is not None:
            delta.logprobs = logprobs[: len(tokens)]
        if first:  # the front end may end the answer itself and then needs to know
            delta.times = request.times
        if first and request.sampling.prompt_logprobs is not None:
            delta.prompt_logprobs = request.prompt_logprobs
        return delta

    def _take_drafts(self, request: Request, chunk: Chunk, num_drawn: int) -> None:
        """Of the chunk's drafts, all but the last of the `num_drawn` tokens were right."""
        if self.drafting is not None:
            self.drafting.drafter.learn(request.request_id, len(chunk.drafts), num_drawn - 1)
        if request.status is Status.RUNNING:
            self.policy.charge(request, num_drawn - 1)
            request.num_computed_tokens = chunk.start + num_drawn
            self.kv.commit(request)

    def _finish(self, request: Request, reason: FinishReason, now: float | None = None) -> None:
        if request.status is Status.RUNNING:
            del self.running[request.request_id]
            self._dropped.append(request.request_id)
        else:
            del self.waiting[request.request_id]
        del self.requests[request.request_id]
        if self.watcher is not None:
            self.watcher.finished(request, reason)
        self.kv.free(request)
        self.policy.leave(request)
        if self.drafting is not None:
            self.drafting.drafter.forget(request.request_id)
        request.status = Status.FINISHED
        request.finish_reason = reason
        request.times.finished = now

    def check_integrity(self) -> None:
        """Raise AssertionError if the queues, counters and blocks disagree (tests, idle checks)."""
        if self.requests != {**self.waiting, **self.running}:
            raise AssertionError("a request is in no queue, or in two")
        if any(r.block_table for r in self.waiting.values()):
            raise AssertionError("a waiting request holds blocks")
        if len(self.running) > self.settings.max_num_seqs:
            raise AssertionError("more requests run than max_num_seqs")
        for request in self.running.values():
            if not 0 <= request.num_computed_tokens < request.num_tokens:
                raise AssertionError(f"{request} has nothing left to compute")
        self.kv.check_integrity(self.requests.values())
