"""A run as a trace for https://ui.perfetto.dev or chrome://tracing.

JSON array format of the Trace Event Format (Google, "Trace Event Format"): complete events (ph X),
counters (C), instants (i) and names (M); times in microseconds since the start. The closing bracket
may be missing, so a killed server leaves a trace that opens.

    engine     one slice per step, and in it schedule, draft, forward, sample, update
               counters: requests, KV blocks
    requests   a slice per request, and in it queue, prefill, decode, stalled
               on the first lane that was free, so that there are as many lanes as ran at once
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, Self

import msgspec

from pellucid.engine import events
from pellucid.observe.recording import open_for_writing

ENGINE, REQUESTS = 1, 2  # process ids in the trace


class _TraceEvent(msgspec.Struct, omit_defaults=True):
    ph: str
    pid: int
    tid: int
    name: str
    ts: float | None = None
    dur: float | None = None
    s: str | None = None  # scope of an instant
    args: dict[str, Any] = {}


@dataclass(slots=True)
class _Open:
    """A request in the engine."""

    queued: events.Queued
    lane: int
    phase: str
    since: float
    num_cached_tokens: int = 0
    num_preemptions: int = 0


class Trace:
    """Writes a trace to `file`; a sink for `EventHub.subscribe`.

    Args:
        start: the trace's zero, `time.monotonic()`.
    """

    def __init__(self, file: BinaryIO, model: str, start: float) -> None:
        self._file = file
        self._encode = msgspec.json.Encoder().encode
        self._start = self._end = start
        self._open: dict[int, _Open] = {}
        self._lanes: list[bool] = []  # taken or free
        self._synced = False  # differences mean nothing before the first snapshot
        self._file.write(b"[\n")
        self._name(ENGINE, 0, "process_name", f"engine: {model}", first=True)
        self._name(ENGINE, 1, "thread_name", "steps")
        self._name(REQUESTS, 0, "process_name", "requests")

    @classmethod
    def to_path(cls, path: str, model: str) -> Self:
        """A trace that begins now. Raises ConfigError if the file cannot be written."""
        return cls(open_for_writing(path, "trace"), model, time.monotonic())

    def __call__(self, frame: bytes) -> None:
        self.add(events.decode(frame))

    def add(self, step: events.StepEvents) -> None:
        if step.snapshot is not None:
            self._settle(step.snapshot, step.time - step.idle_seconds)
        if self._synced:
            self._apply(step)
        self._end = step.end

    def _apply(self, step: events.StepEvents) -> None:
        for queued in step.queued:
            self._enter(queued, queued.time)
        for preempted in step.preempted:
            self._enter_phase(preempted.number, "preempted", step.time)
            self._open[preempted.number].num_preemptions += 1
            self._instant(preempted.number, "preempted", step.time)
        for admitted in step.admitted:
            if not admitted.is_return:
                self._open[admitted.number].num_cached_tokens = admitted.num_found_tokens
        for stall in step.stalls:
            if self._open[stall.number].phase in ("prefill", "decode"):
                self._enter_phase(stall.number, "stalled", step.time)
        for share in step.shares:
            self._enter_phase(share.number, "prefill" if share.is_prefill else "decode", step.time)
        for number in step.first_tokens:
            self._instant(number, "first token", step.end)
        if step.shares:
            self._draw_step(step)
        for finished in step.finished:
            self._leave(finished)

    def finish(self) -> None:
        """End what is still open, and the document."""
        for number in list(self._open):
            self._leave(events.Finished(number, "still open", self._end, 0))
        self._file.write(b"\n]\n")

    def close(self) -> None:
        """`finish`, and close the file."""
        self.finish()
        self._file.close()

    # ---- the engine's track

    def _draw_step(self, step: events.StepEvents) -> None:
        num_prefill = sum(share.num_tokens for share in step.shares if share.is_prefill)
        args = {
            "requests": len(step.shares),
            "prefill_tokens": num_prefill,
            "decode_tokens": sum(share.num_tokens for share in step.shares) - num_prefill,
            "preempted": len(step.preempted),
        }
        if drafts := sum(share.num_drafts for share in step.shares):
            args["drafts"] = drafts
            args["drafts_right"] = sum(share.num_accepted for share in step.shares)
        self._slice(ENGINE, 1, f"step {step.step}", step.time, step.end, args)
        begin = step.time
        for name, seconds in (
            ("schedule", step.schedule_seconds),
            ("draft", step.draft_seconds),
            ("forward", step.forward_seconds),
            ("sample", step.sample_seconds),
            ("update", step.update_seconds),
        ):
            if name != "draft" or seconds:
                self._slice(ENGINE, 1, name, begin, begin + seconds)
            begin += seconds
        num_waiting = len(self._open) - len(step.shares)
        self._counter("requests", step.time, {"served": len(step.shares), "waiting": num_waiting})
        self._counter(
            "KV blocks", step.time, {"used": step.pool.num_used, "free": step.pool.num_free}
        )

    # ---- requests

    def _enter(self, queued: events.Queued, since: float) -> None:
        if queued.number in self._open:  # the engine was started again and counts anew
            self._leave(events.Finished(queued.number, "lost", since, 0))
        if False in self._lanes:
            lane = self._lanes.index(False)
            self._lanes[lane] = True
        else:
            lane = len(self._lanes)
            self._lanes.append(True)
            self._name(REQUESTS, lane + 1, "thread_name", f"lane {lane + 1}")
        self._open[queued.number] = _Open(queued, lane, "queue", since)

    def _settle(self, snapshot: events.Snapshot, now: float) -> None:
        """Agree with a snapshot: the first one, or that of an engine that was started again."""
        live = {live.queued.number: live.queued for live in snapshot.requests}
        for number, request in list(self._open.items()):
            if live.get(number) != request.queued:
                self._leave(events.Finished(number, "lost", now, 0))
        for number, queued in live.items():
            if number not in self._open:
                self._enter(queued, max(queued.time, self._start))
        self._synced = True

    def _enter_phase(self, number: int, phase: str, now: float) -> None:
        request = self._open[number]
        if request.phase == phase:
            return
        self._slice(REQUESTS, request.lane + 1, request.phase, request.since, now)
        request.phase, request.since = phase, now

    def _leave(self, finished: events.Finished) -> None:
        self._enter_phase(finished.number, "end", finished.time)
        request = self._open.pop(finished.number)
        self._lanes[request.lane] = False
        args = {
            "prompt_tokens": request.queued.num_prompt_tokens,
            "cached_tokens": request.num_cached_tokens,
            "output_tokens": finished.num_output_tokens,
            "preemptions": request.num_preemptions,
            "reason": finished.reason,
        }
        begin = max(request.queued.time, self._start)
        name = request.queued.request_id
        self._slice(REQUESTS, request.lane + 1, name, begin, finished.time, args)

    # ---- writing

    def _slice(
        self,
        pid: int,
        tid: int,
        name: str,
        begin: float,
        end: float,
        args: dict[str, Any] | None = None,
    ) -> None:
        length = max(0.0, round((end - begin) * 1e6, 3))
        self._write(_TraceEvent("X", pid, tid, name, self._micros(begin), length, args=args or {}))

    def _instant(self, number: int, name: str, now: float) -> None:
        lane = self._open[number].lane
        self._write(_TraceEvent("i", REQUESTS, lane + 1, name, self._micros(now), s="t"))

    def _counter(self, name: str, now: float, values: dict[str, Any]) -> None:
        self._write(_TraceEvent("C", ENGINE, 0, name, self._micros(now), args=values))

    def _name(self, pid: int, tid: int, kind: str, name: str, *, first: bool = False) -> None:
        self._write(_TraceEvent("M", pid, tid, kind, args={"name": name}), first=first)

    def _micros(self, when: float) -> float:
        return round((when - self._start) * 1e6, 3)

    def _write(self, event: _TraceEvent, *, first: bool = False) -> None:
        self._file.write(b"" if first else b",\n")
        self._file.write(self._encode(event))


def trace_parts(
    steps: Iterable[events.StepEvents], model: str, *, each: int = 32
) -> Iterator[bytes]:
    """A whole trace of `steps`, as pieces of which each tells of so many."""
    buffer, trace = BytesIO(), None
    for count, step in enumerate(steps, 1):
        if trace is None:
            begin = min([step.time, *(queued.time for queued in step.queued)])
            trace = Trace(buffer, model, begin)
        trace.add(step)
        if count % each == 0:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    (trace or Trace(buffer, model, 0.0)).finish()
    yield buffer.getvalue()
