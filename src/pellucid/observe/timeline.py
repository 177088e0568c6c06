"""Where a request's time went, told from the events of the steps it lived through.

The last steps are kept as the bytes they came in; they are decoded when somebody asks. From a
request's arrival to its end every moment belongs to one of five: the front end (reading the
request, tokenising; at the end making text and sending it), the queue, prefill, decode, or stalled
(admitted, but not served: preempted, or without a share of the step's budget). A step's moment
reaches back to the end of the step before.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator

import msgspec

from pellucid.engine import events
from pellucid.observe.summary import summarize

MAX_BYTES = 16 << 20  # of kept steps


class StepRing:
    """The most recent steps, as many as fit into `max_bytes`; a sink for `EventHub.subscribe`."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._frames: deque[tuple[float, bytes]] = deque()  # (when it came, events)
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def __call__(self, frame: bytes) -> None:
        self._frames.append((time.monotonic(), frame))
        self._num_bytes += len(frame)
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= len(self._frames.popleft()[1])

    def since(self, begin: float) -> list[bytes]:
        """Frames that came after `begin`, oldest first."""
        found: list[bytes] = []
        for when, frame in reversed(self._frames):
            if when < begin:
                break
            found.append(frame)
        return found[::-1]

    def steps_since(self, begin: float) -> Iterator[events.StepEvents]:
        """`since`, decoded as they are asked for."""
        return map(events.decode, self.since(begin))


class TimelineStep(msgspec.Struct, omit_defaults=True):
    """Steps that were alike: one that the request took part in, or all that it waited through.

    `at` is in seconds from the request's arrival.
    """

    step: int | None  # the first one's number; None: between two steps
    at: float
    seconds: float
    doing: str  # prefill, decode, queue, stalled
    why: str | None = None  # it waited; see `events.Wait`, and "step": one was under way
    steps: int = 1
    tokens: int = 0  # computed
    drafts: int = 0  # of these, guesses
    generated: int = 0
    blocks: int = 0  # taken
    cached_tokens: int = 0  # found when it was admitted in this step
    preempted: bool = False  # in this step


class Phases(msgspec.Struct):
    """Seconds; their sum is the answer's whole time."""

    front_end: float = 0.0
    queue: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    stalled: float = 0.0


class AnswerTimeline(msgspec.Struct):
    """One answer; `at` times are seconds from the request's arrival."""

    id: str
    summary: str = ""
    complete: bool = True  # false: its first steps are not kept any more
    adapter: str | None = None  # the LoRA adapter's name, if it has one
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    queued_at: float | None = None
    admitted_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    phases: Phases = msgspec.field(default_factory=Phases)
    waits: dict[str, float] = {}  # seconds in queue or stalled, by reason
    steps: list[TimelineStep] = []


class _Track:
    """One answer while its steps are read."""

    def __init__(self, answer: AnswerTimeline, received: float, opened: float) -> None:
        self.answer = answer
        self.number: int | None = None
        self.admitted = False
        self.done = False
        self._received = received
        self.cursor = opened  # everything before it belongs to a phase

    def queued(self, queued: events.Queued) -> None:
        self.number, self.done = queued.number, False
        self.answer.adapter = queued.adapter or None
        self.answer.prompt_tokens = queued.num_prompt_tokens
        self.answer.queued_at = queued.time - self._received
        if queued.time > self.cursor:  # the engine was busy with a step
            self._spend(queued.time, TimelineStep(None, 0.0, 0.0, "queue", "step"))

    def join(self, live: events.Live, now: float) -> None:
        """Start in the middle: what came before is not kept any more."""
        self.number = live.queued.number
        self.answer.adapter = live.queued.adapter or None
        self.admitted = live.is_running
        self.answer.complete = False
        self.answer.prompt_tokens = live.queued.num_prompt_tokens
        self.answer.preemptions = live.num_preemptions
        self.answer.queued_at = live.queued.time - self._received
        self.cursor = now

    def admit(self, admitted: events.Admitted, now: float) -> None:
        self.admitted = True
        if not admitted.is_return:
            self.answer.cached_tokens = admitted.num_found_tokens
            self.answer.admitted_at = now - self._received

    def serve(self, step: events.StepEvents, share: events.Share, found: int) -> None:
        entry = TimelineStep(step.step, 0.0, 0.0, "prefill" if share.is_prefill else "decode")
        entry.tokens, entry.generated = share.num_tokens, share.num_generated
        entry.drafts = share.num_drafts
        entry.blocks, entry.cached_tokens = share.num_blocks, found
        self.answer.output_tokens += share.num_generated
        self._spend(step.end, entry)

    def wait(self, step: events.StepEvents, why: str, *, preempted: bool) -> None:
        doing = "stalled" if self.admitted else "queue"
        self.answer.preemptions += preempted
        self._spend(step.end, TimelineStep(step.step, 0.0, 0.0, doing, why, preempted=preempted))

    def finish(self, finished: events.Finished) -> None:
        self.answer.finish_reason = self.answer.finish_reason or finished.reason
        self.answer.finished_at = finished.time - self._received
        self.answer.output_tokens = finished.num_output_tokens
        if finished.time > self.cursor:  # it ended between two steps
            doing = "stalled" if self.admitted else "queue"
            self._spend(finished.time, TimelineStep(None, 0.0, 0.0, doing, "step"))
        self.done = True

    def _spend(self, until: float, entry: TimelineStep) -> None:
        """Time up to `until` went into `entry`, which joins the one before if both waited."""
        seconds = max(0.0, until - self.cursor)
        entry.at, entry.seconds = self.cursor - self._received, seconds
        self.cursor += seconds
        phases, waits = self.answer.phases, self.answer.waits
        setattr(phases, entry.doing, getattr(phases, entry.doing) + seconds)
        last = self.answer.steps[-1] if self.answer.steps else None
        if entry.why is not None:
            waits[entry.why] = waits.get(entry.why, 0.0) + seconds
            if last and (last.doing, last.why, entry.preempted) == (entry.doing, entry.why, False):
                last.seconds += seconds
                last.steps += 1
                return
        self.answer.steps.append(entry)


def trace_answers(
    steps: Iterable[events.StepEvents],
    answers: Iterable[AnswerTimeline],
    *,
    received: float,
    opened: float,
    closed: float | None,
) -> None:
    """Fill in `answers`, known by the engine's ids, from the steps since they were received.

    Args:
        received: when the request arrived; all times are `time.monotonic()`.
        opened: when it was handed to the engine.
        closed: when its last byte was sent; None if it is still being answered.
    """
    tracks = {answer.id: _Track(answer, received, opened) for answer in answers}
    for step in steps:
        _read(step, tracks, received)
        if all(track.done for track in tracks.values()):
            break
    for track in tracks.values():
        phases = track.answer.phases
        phases.front_end = opened - received
        if closed is not None:
            phases.front_end += max(0.0, closed - track.cursor)
        if track.number is None:
            track.answer.complete = False
        track.answer.summary = summarize(track.answer)
        _round(track.answer)


def _round(answer: AnswerTimeline) -> None:
    """To microseconds, which is what clocks are good for."""
    for struct in (answer, answer.phases, *answer.steps):
        for name in struct.__struct_fields__:
            if isinstance(value := getattr(struct, name), float):
                setattr(struct, name, round(value, 6))
    answer.waits = {why: round(seconds, 6) for why, seconds in answer.waits.items()}


def _read(step: events.StepEvents, tracks: dict[str, _Track], received: float) -> None:
    if step.snapshot is not None:
        alive = {live.queued.request_id: live for live in step.snapshot.requests}
        for name, known in tracks.items():
            if live := alive.get(name):
                if known.number is None:
                    known.join(live, step.time - step.idle_seconds)
            elif known.number is not None:  # its engine died; the next one counts anew
                known.done = True
    for queued in step.queued:
        if track := tracks.get(queued.request_id):
            track.queued(queued)
    open_tracks = {t.number: t for t in tracks.values() if t.number is not None and not t.done}
    stalls = {stall.number: stall.why for stall in step.stalls}
    preempted = {event.number for event in step.preempted}
    found: dict[int, int] = {}
    for admitted in step.admitted:
        if track := open_tracks.get(admitted.number):
            track.admit(admitted, step.time)
            found[admitted.number] = admitted.num_found_tokens
    for share in step.shares:
        if track := open_tracks.get(share.number):
            track.serve(step, share, found.get(share.number, 0))
    for number in step.first_tokens:
        if track := open_tracks.get(number):
            track.answer.first_token_at = step.end - received
    served = {share.number for share in step.shares}
    ended = {finished.number: finished for finished in step.finished}
    for number, track in open_tracks.items():
        if number not in served and number not in ended:
            why = stalls.get(number) or step.queue_waits_for or "step"
            track.wait(step, why, preempted=number in preempted)
        if number in ended:
            track.finish(ended[number])
