"""Builds the `StepEvents` of a step. Exists only while somebody listens."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from pellucid.engine import events
from pellucid.engine.request import Request, Status
from pellucid.engine.scheduler import Scheduler
from pellucid.messages import FinishReason, Observe, TokenDelta
from pellucid.runner.base import Chunk, StepPlan


@dataclass(slots=True)
class StepTimes:
    """Seconds of `time.monotonic()`; `previous` is the end of the step before."""

    previous: float
    begin: float
    planned: float
    end: float
    forward_seconds: float
    sample_seconds: float
    draft_seconds: float  # of planning


@dataclass(slots=True)
class _Planning:
    """What was decided when a step was planned; told when the step is done."""

    admitted: list[events.Admitted]
    preempted: list[events.Preempted]
    stalls: list[events.Stall]
    queue_waits_for: events.Wait | None
    journal: list[int]


class Recorder:
    """Watches a scheduler (see `watcher.Watcher`) and sums up each of its steps."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._wanted = Observe(num_listeners=0)
        self._numbers: dict[str, events.Queued] = {}
        self._next_number = 0
        self._steps_to_snapshot = events.SNAPSHOT_STEPS
        self._snapshot: events.Snapshot | None = None  # for the next step
        self._plannings: deque[_Planning] = deque()  # of steps that have yet to be told
        self._journal: list[int] | None = None  # of blocks, from before what is being planned
        self._admitted: list[events.Admitted]
        self._preempted: list[events.Preempted]
        self._clear()

    @property
    def active(self) -> bool:
        return self._wanted.num_listeners > 0

    def listen(self, wanted: Observe) -> None:
        """Start, change or end the recording."""
        was_active, self._wanted = self.active, wanted
        kv = self._scheduler.kv
        self._scheduler.watcher = self if self.active else None
        if not (self.active and wanted.detail):
            kv.journal = None
        elif kv.journal is None:
            kv.journal = []
        if self.active and not was_active:
            self._clear()
            self._numbers = {}
            for request in self._scheduler.requests.values():
                self._introduce(request, request.arrival_time)
        self._snapshot = self._take_snapshot() if self.active else None
        self._plannings.clear()

    @property
    def needs_rest(self) -> bool:
        """The next step ends with a snapshot: none may be under way then."""
        return self.active and self._steps_to_snapshot == 1

    # ---- what the scheduler tells

    def entered(self, request: Request) -> None:
        self._queued.append(self._introduce(request, time.monotonic()))

    def admitted(self, request: Request, num_found: int, *, is_return: bool) -> None:
        number = self._numbers[request.request_id].number
        self._admitted.append(events.Admitted(number, num_found, is_return))

    def preempted(self, request: Request) -> None:
        number = self._numbers[request.request_id].number
        self._preempted.append(events.Preempted(number, len(request.block_table)))

    def finished(self, request: Request, reason: FinishReason) -> None:
        self._gone.append((self._live(request), request))
        queued = self._numbers.pop(request.request_id)
        for planning in list(self._plannings)[1:]:  # who ends with a step had no part in the next
            planning.preempted = [e for e in planning.preempted if e.number != queued.number]
            planning.stalls = [e for e in planning.stalls if e.number != queued.number]
        self._finished.append(
            events.Finished(
                queued.number,
                reason,
                time.monotonic(),
                request.num_output_tokens,
                len(request.block_table),
            )
        )

    # ---- a step

    def planning(self) -> None:
        """A step is about to be planned: what happens to blocks meanwhile is told with it."""
        kv = self._scheduler.kv
        self._journal, kv.journal = kv.journal, None if kv.journal is None else []

    def planned(self, plan: StepPlan) -> None:
        """A step was just planned. It is told by a later `step`, in the order of planning."""
        kv = self._scheduler.kv
        journal, kv.journal = kv.journal or [], self._journal
        waits_for = self._scheduler.queue_waits_for if self._scheduler.waiting else None
        self._plannings.append(
            _Planning(self._admitted, self._preempted, self._stalls(plan), waits_for, journal)
        )
        self._admitted, self._preempted = [], []

    def unplanned(self) -> None:
        """The step planned last computes nothing, changed nothing, and will not be told."""
        if self.active:
            self._plannings.pop()

    def step(self, plan: StepPlan, deltas: Iterable[TokenDelta], times: StepTimes) -> bytes:
        """The encoded `StepEvents` of a step that was just accounted."""
        kv = self._scheduler.kv
        planning = self._plannings.popleft()
        planned = times.planned - times.begin
        journal = planning.journal + (kv.journal or [])
        step = events.StepEvents(
            step=plan.step,
            time=times.begin,
            idle_seconds=times.begin - times.previous,
            schedule_seconds=planned - times.draft_seconds,
            draft_seconds=times.draft_seconds,
            forward_seconds=times.forward_seconds,
            sample_seconds=times.sample_seconds,
            update_seconds=times.end - times.planned - times.forward_seconds - times.sample_seconds,
            pool=events.Pool(kv.num_used, kv.num_free, kv.num_named),
            queued=self._queued,
            admitted=planning.admitted,
            finished=self._finished,
            preempted=planning.preempted,
            stalls=planning.stalls,
            queue_waits_for=planning.queue_waits_for,
            forgotten=[~entry for entry in journal if entry < 0],
            named=[entry for entry in journal if entry >= 0],
        )
        self._add_shares(step, plan, deltas)
        step.snapshot, self._snapshot = self._snapshot, None
        encoded = events.encode(step)
        self._clear()
        self._steps_to_snapshot -= 1
        if self._steps_to_snapshot == 0:
            self._steps_to_snapshot = events.SNAPSHOT_STEPS
            self._snapshot = self._take_snapshot()
        return encoded

    def _add_shares(
        self, step: events.StepEvents, plan: StepPlan, deltas: Iterable[TokenDelta]
    ) -> None:
        generated = {delta.request_id: delta.token_ids for delta in deltas}
        gone = {request.request_id: request for _, request in self._gone}
        numbers = {request.request_id: live.queued for live, request in self._gone}
        for chunk in plan.chunks:
            request_id = chunk.request_id
            queued = self._numbers.get(request_id) or numbers[request_id]
            request = self._scheduler.requests.get(request_id) or gone[request_id]
            tokens = generated.get(request_id, [])
            step.shares.append(self._share(queued.number, request, chunk, tokens))
            if tokens and request.num_output_tokens == len(tokens):
                step.first_tokens.append(queued.number)

    def _share(
        self, number: int, request: Request, chunk: Chunk, tokens: list[int]
    ) -> events.Share:
        known = request.num_tokens - len(tokens)  # when the step was planned
        return events.Share(
            number,
            chunk.start,
            chunk.num_tokens,
            chunk.start < known - 1 or known == request.num_prompt_tokens,
            len(tokens),
            len(chunk.new_block_ids),
            chunk.new_block_ids if self._wanted.detail else [],
            tokens if self._wanted.tokens else [],
            len(chunk.drafts),
        )

    def _stalls(self, plan: StepPlan) -> list[events.Stall]:
        scheduler = self._scheduler
        stalls = [
            events.Stall(queued.number, why)
            for request_id, why in scheduler.stalls.items()
            if (queued := self._numbers.get(request_id))
        ]
        served = {chunk.request_id for chunk in plan.chunks}
        return stalls + [
            events.Stall(self._numbers[request_id].number, "budget")
            for request_id, request in scheduler.running.items()
            if request_id not in served and not request.is_ending
        ]

    # ---- state

    def _introduce(self, request: Request, now: float) -> events.Queued:
        queued = events.Queued(
            self._next_number,
            request.request_id,
            now,
            request.num_prompt_tokens,
            request.max_total_tokens,
            request.adapter.name if request.adapter else "",
        )
        self._numbers[request.request_id] = queued
        self._next_number += 1
        return queued

    def _take_snapshot(self) -> events.Snapshot:
        """The state after the last step, of which what came since has to be undone."""
        new = {queued.number for queued in self._queued}
        lives = [self._live(request) for request in self._scheduler.requests.values()]
        lives += [live for live, _ in self._gone]
        named = dict.fromkeys(self._scheduler.kv.named_blocks() if self._wanted.detail else [])
        forgotten = (~entry for entry in self._scheduler.kv.journal or () if entry < 0)
        named.update(dict.fromkeys(forgotten))
        return events.Snapshot(
            [live for live in lives if live.queued.number not in new],
            list(named),
            self._wanted.detail,
        )

    def _live(self, request: Request) -> events.Live:
        return events.Live(
            self._numbers[request.request_id],
            request.status is Status.RUNNING,
            request.num_tokens,
            request.num_computed_tokens,
            request.times.num_preemptions,
            len(request.block_table),
            list(request.block_table) if self._wanted.detail else [],
        )

    def _clear(self) -> None:
        self._queued: list[events.Queued] = []
        self._admitted, self._preempted = [], []
        self._finished: list[events.Finished] = []
        self._gone: list[tuple[events.Live, Request]] = []
        if self._scheduler.kv.journal is not None:
            self._scheduler.kv.journal = []
