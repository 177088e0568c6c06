"""A recording to look around in: where one may begin, what has happened by then, and who was there.

A snapshot every `events.SNAPSHOT_STEPS` steps makes any step a short way from a place to begin at.
The index takes some bytes for each step and request; the steps themselves stay in the file.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pellucid.engine import events
from pellucid.errors import BadRequest, ConfigError, RequestNotFound
from pellucid.observe.recording import RecordingReader
from pellucid.observe.timeline import AnswerTimeline, trace_answers
from pellucid.observe.xray import Part, Totals, as_json

MIN_CHUNK_STEPS = 512  # snapshots that are closer begin no chunk of their own


class Start(msgspec.Struct):
    """Where a chunk begins."""

    first: int  # position of its first step
    time: float  # monotonic


@dataclass(slots=True)
class Life:
    """A request's: the positions of the first and last step that tell of it."""

    begin: int
    queued: events.Queued
    end: int | None = None
    finished: events.Finished | None = None


class Replay:
    """A recording, read once from its beginning to its end. Its first step has a snapshot.

    Raises:
        ConfigError: see `RecordingReader`; or there are no steps.
    """

    def __init__(self, path: str | Path) -> None:
        self._reader = RecordingReader(path)
        self.header = self._reader.header
        self.starts: list[Start] = []
        self._totals: list[Totals] = []  # before each chunk
        self._offsets = array("Q")
        self._lives: dict[str, Life] = {}
        self.begin = self.end = 0.0  # monotonic
        totals, open_lives = Totals(), dict[int, Life]()
        try:
            for offset, step in self._reader:
                self._index(offset, step, totals, open_lives)
            if not self._offsets:
                raise ConfigError(f"{path} has no steps: nothing was recorded")
        except BaseException:
            self._reader.close()
            raise
        self.totals = totals

    @property
    def num_steps(self) -> int:
        return len(self._offsets)

    @property
    def num_cut(self) -> int:
        """Bytes at the end of the file that are no whole step."""
        return self._reader.num_cut

    def chunk(self, nth: int) -> Part:
        """The steps from one start to the next. Raises BadRequest."""
        if not 0 <= nth < len(self.starts):
            raise BadRequest(
                f"chunk must be between 0 and {len(self.starts) - 1}, got {nth}", param="chunk"
            )
        first = self.starts[nth].first
        end = self.starts[nth + 1].first if nth + 1 < len(self.starts) else self.num_steps
        steps = [msgspec.Raw(as_json(step)) for step in self.steps(first, end)]
        return Part(first, steps, self._totals[nth])

    def steps(self, begin: int = 0, end: int | None = None) -> Iterator[events.StepEvents]:
        for offset in self._offsets[begin:end]:
            yield self._reader.step_at(offset)

    def timeline(self, request_id: str) -> tuple[Life, AnswerTimeline]:
        """Where a request's time went, in the engine alone. Raises RequestNotFound."""
        life = self._lives.get(request_id)
        if life is None:
            raise RequestNotFound(
                f"No request {request_id!r} is in this recording.",
                param="id",
                code="request_not_found",
            )
        answer, begin = AnswerTimeline(request_id), life.queued.time
        if life.finished is not None:
            answer.finish_reason = life.finished.reason
        steps = self.steps(life.begin, None if life.end is None else life.end + 1)
        closed = life.finished.time if life.finished else None
        trace_answers(steps, [answer], received=begin, opened=begin, closed=closed)
        return life, answer

    def close(self) -> None:
        self._reader.close()

    def _index(
        self,
        offset: int,
        step: events.StepEvents,
        totals: Totals,
        open_lives: dict[int, Life],
    ) -> None:
        is_start = step.snapshot is not None and step.snapshot.detail
        position = self.num_steps
        if not position:
            if not is_start:  # what it tells differs from something unknown
                return
            self.begin = step.time
        if is_start and (not position or position - self.starts[-1].first >= MIN_CHUNK_STEPS):
            self.starts.append(Start(position, step.time))
            self._totals.append(copy(totals))
        self._offsets.append(offset)
        self.end = step.end
        totals.add(step)
        if step.snapshot is not None:
            open_lives.clear()  # who is not in it died with the engine
            self._enter(position, (live.queued for live in step.snapshot.requests), open_lives)
        self._enter(position, step.queued, open_lives)
        if strangers := _numbers(step) - open_lives.keys():
            raise ConfigError(
                f"{self._reader.path} is damaged at byte {offset}: "
                f"there is no request {min(strangers)}"
            )
        for finished in step.finished:
            life = open_lives.pop(finished.number)
            life.end, life.finished = position, finished

    def _enter(
        self, position: int, queued: Iterable[events.Queued], open_lives: dict[int, Life]
    ) -> None:
        for new in queued:
            life = self._lives.setdefault(new.request_id, Life(position, new))
            open_lives[new.number] = life


def _numbers(step: events.StepEvents) -> set[int]:
    """Of all requests that the step tells of."""
    told = (step.shares, step.admitted, step.preempted, step.stalls, step.finished)
    return {event.number for kind in told for event in kind} | set(step.first_tokens)
