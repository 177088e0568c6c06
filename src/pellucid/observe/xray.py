"""What readers of a live engine get: its events as they are, from a snapshot on.

A reader keeps the engine's state by the rules in `engine/events.py`. `Feed` is a sink for
`EventHub.subscribe(..., detail=True)`; it keeps the last steps, as JSON, for any number of readers,
each of which asks for what came since. Memory is bounded by bytes: who reads slowly begins anew
at a later snapshot, and the engine never waits.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from copy import copy

import msgspec

from pellucid.engine import events

MAX_BYTES = 16 << 20  # of kept steps
MAX_STEPS = 1024  # that a reader may be behind; a window of 100 ms has a few dozen


class Totals(msgspec.Struct):
    """Sums over steps, which no snapshot has."""

    finished: int = 0  # requests
    generated: int = 0  # tokens
    found: int = 0  # prompt tokens, in the prefix cache
    prefilled: int = 0  # prompt tokens that were computed
    preempted: int = 0  # times
    drafted: int = 0  # tokens that were guessed
    accepted: int = 0  # of these, right

    def add(self, step: events.StepEvents) -> None:
        for share in step.shares:
            self.generated += share.num_generated
            self.prefilled += share.num_tokens if share.is_prefill else 0
            self.drafted += share.num_drafts
            self.accepted += share.num_accepted
        self.found += sum(a.num_found_tokens for a in step.admitted if not a.is_return)
        self.finished += len(step.finished)
        self.preempted += len(step.preempted)


class Part(msgspec.Struct, omit_defaults=True):
    """Steps in a row. With `totals`, those before them, the first has a snapshot to begin with."""

    first: int  # position of the first step; counts from where the feed or file began
    steps: list[msgspec.Raw] = []  # `events.StepEvents` as JSON arrays
    totals: Totals | None = None
    left_out: int = 0  # steps between the reader's last one and these


def as_json(step: events.StepEvents) -> bytes:
    """Without the token ids that a recording may have asked for."""
    for share in step.shares:
        if share.token_ids:
            share.token_ids = []
    return _encode(step)


class Feed:
    """The last steps of one engine."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._first = 0  # position of the oldest kept step
        self._steps: deque[bytes] = deque()
        self._starts: deque[tuple[int, Totals]] = deque()  # of kept steps: where one may begin
        self._totals = Totals()
        self._synced = False  # differences mean nothing before the first snapshot

    def __call__(self, frame: bytes) -> None:
        step = events.decode(frame)
        is_start = step.snapshot is not None and step.snapshot.detail
        if not (self._synced or is_start):
            return
        self._synced = True
        encoded = as_json(step)
        if is_start:
            self._starts.append((self._end, copy(self._totals)))
        self._totals.add(step)
        self._steps.append(encoded)
        self._num_bytes += len(encoded)
        while self._num_bytes > self._max_bytes and len(self._steps) > 1:
            self._num_bytes -= len(self._steps.popleft())
            self._first += 1
        while self._starts and self._starts[0][0] < self._first:
            self._starts.popleft()

    def take(self, position: int | None) -> Part | None:
        """What there is from `position` on, for a reader who has all before it; None: nothing.

        A new reader has no position, and begins with the last snapshot. So does one who is far
        behind.
        """
        if position is not None and self._first <= position and self._is_near(position):
            steps = self._since(position)
            return Part(position, steps) if steps else None
        if not self._starts:
            return None
        start, totals = self._starts[-1]
        left_out = 0 if position is None else start - position
        return Part(start, self._since(start), totals, left_out)

    def kept(self) -> Iterator[events.StepEvents]:
        """All steps from the oldest snapshot on, as they are now; decoded as they are asked for."""
        return map(_decode, self._since(self._starts[0][0]) if self._starts else [])

    @property
    def _end(self) -> int:
        return self._first + len(self._steps)

    def _is_near(self, position: int) -> bool:
        has_later_start = bool(self._starts) and self._starts[-1][0] > position
        return self._end - position <= MAX_STEPS or not has_later_start

    def _since(self, position: int) -> list[msgspec.Raw]:
        newest_first = itertools.islice(reversed(self._steps), self._end - position)
        return [msgspec.Raw(step) for step in newest_first][::-1]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(events.StepEvents).decode
