"""An engine's state as its events tell it, and what became of it since somebody last asked.

`Xray` is a sink for `EventHub.subscribe(..., detail=True)`. It applies every step at once, by the
rules in `engine/events.py`, and remembers which requests and blocks have changed; `take` sums that
up as one `Window`, to be encoded before the next step. What waits to be taken is bounded by the
state's size, not by the time: who reads slowly gets fewer windows, and the engine never waits.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Literal

import msgspec

from pellucid.engine import events

MAX_STEPS = 256  # kept for one window; a window of 100 ms has a few dozen

Phase = Literal["queued", "running", "preempted"]


class Part(msgspec.Struct, array_like=True):
    """A request's part of a step."""

    number: int
    is_prefill: bool
    num_tokens: int  # computed
    num_generated: int


class Step(msgspec.Struct, array_like=True):
    """A step, without what did nothing. Times are seconds; `time` is `time.monotonic()`."""

    step: int
    time: float
    idle: float
    schedule: float
    forward: float
    sample: float
    update: float
    parts: list[Part]


class Seen(msgspec.Struct, array_like=True):
    """A request, as it is after the window's last step."""

    number: int
    request_id: str
    phase: Phase
    queued: float  # when; monotonic
    num_prompt_tokens: int
    num_computed: int
    num_tokens: int  # prompt and answer
    num_cached: int  # prompt tokens found in the prefix cache when it was admitted
    num_preemptions: int
    num_blocks: int
    first_token: float | None = None  # when


class Ended(msgspec.Struct, array_like=True):
    """A request that left the engine."""

    number: int
    reason: str
    time: float
    num_output_tokens: int


class Block(msgspec.Struct, array_like=True):
    """A KV block. Without holders it is free, and if it has a name still a prefix to be found."""

    block: int
    holders: list[int]  # numbers of requests; several share a prefix
    is_named: bool


class Window(msgspec.Struct, omit_defaults=True):
    """What has changed. The first one brings all there is."""

    steps: list[Step] = []
    left_out: int = 0  # steps that are not in `steps`: the reader was slow
    requests: list[Seen] = []  # new ones and those that have changed
    ended: list[Ended] = []
    blocks: list[Block] = []  # those that have changed; the others are free and empty
    pool: events.Pool | None = None  # num_used, num_free, num_named


class Xray:
    """One reader's view of one engine. Its first step has to bring a snapshot."""

    def __init__(self) -> None:
        self.requests: dict[int, Seen] = {}
        self.named: set[int] = set()
        self.tables: dict[int, list[int]] = {}  # blocks by the request's number
        self.holders: dict[int, list[int]] = {}  # numbers by block; none is empty
        self._steps: deque[Step] = deque(maxlen=MAX_STEPS)
        self._num_steps = 0
        self._ended: dict[int, Ended] = {}
        self._changed: set[int] = set()  # requests
        self._changed_blocks: set[int] = set()
        self._pool: events.Pool | None = None

    @property
    def has_news(self) -> bool:
        return self._pool is not None

    def __call__(self, frame: bytes) -> None:
        step = events.decode(frame)
        if step.snapshot is not None:
            self._settle(step.snapshot, step.time)
        for queued in step.queued:
            self._put(_seen(queued))
        for gone in step.preempted:
            self._preempt(gone.number)
        for admitted in step.admitted:
            request = self._change(admitted.number)
            request.phase = "running"
            request.num_computed = admitted.num_found_tokens
            if not admitted.is_return:
                request.num_cached = admitted.num_found_tokens
        for share in step.shares:
            self._serve(share)
        for number in step.first_tokens:
            self._change(number).first_token = step.end
        self._rename(forgotten=step.forgotten, named=step.named)
        for finished in step.finished:
            self._end(finished.number, finished.reason, finished.time, finished.num_output_tokens)
        self._pool = step.pool
        if step.shares:
            self._num_steps += 1
            self._steps.append(_step(step))

    def take(self) -> Window:
        """What has changed since it was last called."""
        window = Window(
            list(self._steps),
            self._num_steps - len(self._steps),
            [self.requests[number] for number in sorted(self._changed)],
            list(self._ended.values()),
            [
                Block(block, self.holders.get(block, []), block in self.named)
                for block in sorted(self._changed_blocks)
            ],
            self._pool,
        )
        self._steps.clear()
        self._num_steps, self._ended, self._pool = 0, {}, None
        self._changed, self._changed_blocks = set(), set()
        return window

    # ---- inside

    def _settle(self, snapshot: events.Snapshot, now: float) -> None:
        """Begin anew; what is known of the same requests beyond the snapshot stays."""
        before, self.requests = self.requests, {}
        # Another engine may have numbered others the same.
        same = {(seen.number, seen.request_id): seen for seen in before.values()}
        self._changed_blocks |= self.holders.keys() | self.named
        self.tables, self.holders, self.named = {}, {}, set()
        for live in snapshot.requests:
            seen = _seen(live.queued)
            seen.num_computed, seen.num_tokens = live.num_computed_tokens, live.num_tokens
            seen.num_preemptions = live.num_preemptions
            waits: Phase = "preempted" if live.num_preemptions else "queued"
            seen.phase = "running" if live.is_running else waits
            if known := same.pop((seen.number, seen.request_id), None):
                seen.num_cached, seen.first_token = known.num_cached, known.first_token
            self._put(seen)
            self._hold(seen, live.block_ids, live.num_blocks)
        for number, _ in same:
            if number not in self.requests:  # its engine died
                self._ended[number] = Ended(number, "abort", now, 0)
                self._changed.discard(number)
        self._rename(forgotten=[], named=snapshot.named)

    def _put(self, seen: Seen) -> None:
        self._ended.pop(seen.number, None)
        self.requests[seen.number] = seen
        self._changed.add(seen.number)
        self.tables[seen.number] = []

    def _change(self, number: int) -> Seen:
        self._changed.add(number)
        return self.requests[number]

    def _serve(self, share: events.Share) -> None:
        request = self._change(share.number)
        request.num_computed = share.start + share.num_tokens
        request.num_tokens += share.num_generated
        self._hold(request, share.block_ids, share.num_blocks)

    def _hold(self, request: Seen, block_ids: list[int], num_blocks: int) -> None:
        request.num_blocks += num_blocks
        self.tables[request.number] += block_ids
        self._changed_blocks.update(block_ids)
        for block in block_ids:
            self.holders.setdefault(block, []).append(request.number)

    def _preempt(self, number: int) -> None:
        request = self._change(number)
        request.phase = "preempted"
        request.num_computed = request.num_blocks = 0
        request.num_preemptions += 1
        self._free(number)
        self.tables[number] = []

    def _end(self, number: int, reason: str, time: float, num_output_tokens: int) -> None:
        del self.requests[number]
        self._changed.discard(number)
        self._free(number)
        self._ended[number] = Ended(number, reason, time, num_output_tokens)

    def _free(self, number: int) -> None:
        for block in self.tables.pop(number):
            self._changed_blocks.add(block)
            self.holders[block].remove(number)
            if not self.holders[block]:
                del self.holders[block]

    def _rename(self, *, forgotten: list[int], named: list[int]) -> None:
        self.named.difference_update(forgotten)
        self.named.update(named)
        self._changed_blocks.update(itertools.chain(forgotten, named))


def _seen(queued: events.Queued) -> Seen:
    tokens = queued.num_prompt_tokens
    return Seen(queued.number, queued.request_id, "queued", queued.time, tokens, 0, tokens, 0, 0, 0)


def _step(step: events.StepEvents) -> Step:
    return Step(
        step.step,
        round(step.time, 6),
        round(step.idle_seconds, 6),
        round(step.schedule_seconds, 6),
        round(step.forward_seconds, 6),
        round(step.sample_seconds, 6),
        round(step.update_seconds, 6),
        [Part(s.number, s.is_prefill, s.num_tokens, s.num_generated) for s in step.shares],
    )
