"""What is known of each HTTP request: from its first byte to its last, across all its answers."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pellucid.frontend.stats import RequestReport, StepReport
from pellucid.messages import FinishReason
from pellucid.observe.timeline import StepRing
from pellucid.sampling_params import SamplingParams


@dataclass(slots=True)
class Answering:
    """The part of a request that went to the engine."""

    id: str  # the response's
    model: str
    params: SamplingParams
    stream: bool
    opened: float  # when the first prompt was handed over
    answers: list[str]  # the engine's ids
    ring: StepRing | None = None  # the engine's steps
    reports: dict[str, RequestReport] = field(default_factory=dict)  # of answers that ended
    prompts: list[str] | None = None  # for the log, if it may have them


@dataclass(slots=True)
class Record:
    """One HTTP request. Times are `time.monotonic()`, `unix_time` is when it was received."""

    method: str
    path: str
    received: float
    unix_time: float
    traceparent: str | None = None
    request_id: str = ""
    route: str = ""  # the path's template; empty if there is none
    status: int | None = None  # None: the client left before there was one
    closed: float | None = None
    answering: Answering | None = None

    @property
    def seconds(self) -> float:
        return (time.monotonic() if self.closed is None else self.closed) - self.received


@dataclass(slots=True)
class Totals:
    """A request's answers summed up; times are the longest of any answer, in seconds."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    queue: float | None = None
    prefill: float | None = None
    decode: float | None = None
    finish_reasons: list[FinishReason] = field(default_factory=list)


def total(reports: Iterable[RequestReport]) -> Totals:
    totals = Totals()
    for report in reports:
        times = report.times
        totals.prompt_tokens += report.num_prompt_tokens
        totals.cached_tokens += report.num_cached_tokens
        totals.output_tokens += report.num_output_tokens
        totals.preemptions += times.num_preemptions
        totals.queue = _longest(totals.queue, times.arrival, times.scheduled)
        totals.prefill = _longest(totals.prefill, times.scheduled, times.first_token)
        totals.decode = _longest(totals.decode, times.first_token, times.finished)
        totals.finish_reasons.append(report.finish_reason)
    return totals


class Ledger:
    """A `StatsListener` that gathers reports into the records of open requests.

    Args:
        num_kept: ended requests that can still be found.
    """

    def __init__(self, num_kept: int) -> None:
        self.on_close: list[Callable[[Record], None]] = []
        self._num_kept = num_kept
        self._by_answer: dict[str, Answering] = {}  # open ones
        self._open: dict[str, Record] = {}  # by the response's id
        self._ended: OrderedDict[str, Record] = OrderedDict()

    def open(self, record: Record, answering: Answering) -> None:
        """The request's prompts went to the engine."""
        record.answering = answering
        self._open[answering.id] = record
        for answer in answering.answers:
            self._by_answer[answer] = answering

    def close(self, record: Record) -> None:
        """The last byte was sent, or the client is gone."""
        record.closed = time.monotonic()
        if record.answering is not None:
            self._open.pop(record.answering.id, None)
            for answer in record.answering.answers:
                self._by_answer.pop(answer, None)
            self._keep(record.answering.id, record)
        for listener in self.on_close:
            listener(record)

    def find(self, request_id: str) -> Record | None:
        """By the response's id, or by the request id in its header; the latest of that name."""
        if record := self._open.get(request_id) or self._ended.get(request_id):
            return record
        for records in (self._open, self._ended):
            for record in reversed(records.values()):
                if record.request_id == request_id:
                    return record
        return None

    # ---- StatsListener

    def on_step(self, report: StepReport) -> None:
        pass

    def on_finish(self, report: RequestReport) -> None:
        if answering := self._by_answer.get(report.request_id):
            answering.reports[report.request_id] = report

    def _keep(self, name: str, record: Record) -> None:
        self._ended.pop(name, None)
        self._ended[name] = record
        while len(self._ended) > self._num_kept:
            self._ended.popitem(last=False)


def _longest(value: float | None, begin: float | None, end: float | None) -> float | None:
    if begin is None or end is None:
        return value
    return max(value or 0.0, end - begin)
