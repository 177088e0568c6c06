"""Builds the `StepEvents` of a step. Exists only while somebody listens."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from pellucid.engine import events
from pellucid.engine.request import Request, Status
from pellucid.engine.scheduler import Scheduler
from pellucid.messages import Observe, TokenDelta
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


class Recorder:
    """Watches a scheduler (see `scheduler.Watcher`) and sums up each of its steps."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._wanted = Observe(num_listeners=0)
        self._numbers: dict[str, events.Queued] = {}
        self._next_number = 0
        self._steps_to_snapshot = events.SNAPSHOT_STEPS
        self._snapshot: events.Snapshot | None = None  # for the next step
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

    # ---- what the scheduler tells

    def entered(self, request: Request) -> None:
        self._queued.append(self._introduce(request, time.monotonic()))

    def admitted(self, request: Request, num_found: int, *, is_return: bool) -> None:
        number = self._numbers[request.request_id].number
        self._admitted.append(events.Admitted(number, num_found, is_return))

    def preempted(self, request: Request) -> None:
        number = self._numbers[request.request_id].number
        self._preempted.append(events.Preempted(number, len(request.block_table)))

    def finished(self, request: Request, reason: str) -> None:
        self._gone.append((self._live(request), request))
        queued = self._numbers.pop(request.request_id)
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

    def step(self, plan: StepPlan, deltas: Iterable[TokenDelta], times: StepTimes) -> bytes:
        """The encoded `StepEvents` of a step that was just accounted."""
        scheduler = self._scheduler
        kv = scheduler.kv
        planned = times.planned - times.begin
        step = events.StepEvents(
            step=plan.step,
            time=times.begin,
            idle_seconds=times.begin - times.previous,
            schedule_seconds=planned,
            forward_seconds=times.forward_seconds,
            sample_seconds=times.sample_seconds,
            update_seconds=times.end - times.planned - times.forward_seconds - times.sample_seconds,
            pool=events.Pool(kv.num_used, kv.num_free, kv.num_named),
            queued=self._queued,
            admitted=self._admitted,
            finished=self._finished,
            preempted=self._preempted,
            forgotten=[~entry for entry in kv.journal or () if entry < 0],
            named=[entry for entry in kv.journal or () if entry >= 0],
        )
        self._add_shares(step, plan, deltas)
        self._add_stalls(step, plan)
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
        )

    def _add_stalls(self, step: events.StepEvents, plan: StepPlan) -> None:
        scheduler = self._scheduler
        for request_id, why in scheduler.stalls.items():
            if queued := self._numbers.get(request_id):
                step.stalls.append(events.Stall(queued.number, why))
        served = {chunk.request_id for chunk in plan.chunks}
        step.stalls += [
            events.Stall(self._numbers[request_id].number, "budget")
            for request_id in scheduler.running
            if request_id not in served
        ]
        step.queue_waits_for = scheduler.queue_waits_for if scheduler.waiting else None

    # ---- state

    def _introduce(self, request: Request, now: float) -> events.Queued:
        queued = events.Queued(
            self._next_number,
            request.request_id,
            now,
            request.num_prompt_tokens,
            request.max_total_tokens,
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
        self._admitted: list[events.Admitted] = []
        self._preempted: list[events.Preempted] = []
        self._finished: list[events.Finished] = []
        self._gone: list[tuple[events.Live, Request]] = []
        if self._scheduler.kv.journal is not None:
            self._scheduler.kv.journal = []
