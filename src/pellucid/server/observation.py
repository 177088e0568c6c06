"""All that looks on while the server works, put together as the settings ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Receive, Scope, Send

from pellucid.config import ObserveSettings
from pellucid.errors import RequestNotFound
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.observe import logs
from pellucid.observe.ledger import Answering, Ledger, Record
from pellucid.observe.recording import Recording
from pellucid.observe.spans import Spans
from pellucid.observe.timeline import AnswerTimeline, StepRing, trace_answers
from pellucid.observe.trace import Trace
from pellucid.server.job import Job

# fmt: off
HTTP_BUCKETS = (.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# fmt: on


class Timeline(msgspec.Struct):
    """GET /v1/requests/{id}/timeline. Times are seconds; `at` counts from the arrival."""

    id: str
    request_id: str
    route: str
    received: float  # Unix time
    seconds: float
    is_open: bool
    status: int | None
    answers: list[AnswerTimeline]


class Observation:
    """One server's; `close` ends what it began. Raises ConfigError for a bad file or URL."""

    def __init__(
        self, llm: AsyncLLM, settings: ObserveSettings, registry: CollectorRegistry
    ) -> None:
        self._llm = llm
        self._settings = settings
        self._ends: list[Callable[[], object]] = []
        self._http = HttpMetrics(registry)
        self._ring: StepRing | None = None
        self.ledger = Ledger(settings.timelines)
        self.ledger.on_close.append(logs.log_request)
        llm.listeners.append(self.ledger)
        if settings.log_interval:
            llm.listeners.append(logs.ThroughputLog(settings.log_interval, llm.info.num_kv_blocks))
        if settings.otlp_endpoint is not None:
            spans = Spans.to_collector(settings.otlp_endpoint, llm.model_name)
            self.ledger.on_close.append(spans)
            self._ends.append(spans.close)
        self._listen()

    def close(self) -> None:
        for end in self._ends:
            end()
        self._ends.clear()

    # ---- requests

    def received(self, scope: Scope) -> Record:
        """A request has come; `ended` must follow."""
        traceparent = dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1") or None
        path, now = scope["path"], time.monotonic()
        record = Record(scope["method"], path, now, time.time(), traceparent)
        scope.setdefault("state", {})["record"] = record
        return record

    def opened(self, record: Record | None, job: Job, opened: float, stream: bool) -> None:
        """`job` answers the request; its prompts went to the engine."""
        if record is None:  # not from the network
            return
        prompts = None
        if self._settings.log_prompts:
            prompts = [
                g.request.prompt or self._llm.decode(g.prompt_token_ids, skip_special_tokens=False)
                for g in job.generations
            ]
        answers = [s.request_id for g in job.generations for s in g.request.sequences]
        self.ledger.open(
            record, Answering(job.id, job.params, stream, opened, answers, {}, prompts)
        )

    def ended(self, record: Record, scope: Scope) -> None:
        """The last byte was sent, or the client has left."""
        record.request_id = scope["state"].get("request_id", "")
        record.status = scope["state"].get("status")
        record.route = getattr(scope.get("route"), "path", "")
        self.ledger.close(record)
        self._http.count(record)
        if self._settings.access_log:
            logs.log_access(record)

    async def timeline(self, request_id: str) -> Timeline:
        """Where a request's time went.

        Raises:
            RequestNotFound: no such request is known any more, or none is kept.
        """
        record = self.ledger.find(request_id) if self._ring else None
        if self._ring is None or record is None or record.answering is None:
            kept = self._settings.timelines
            raise RequestNotFound(
                f"No request {request_id!r} is known; the last {kept} are kept (--timelines).",
                param="id",
                code="request_not_found",
            )
        answering = record.answering
        answers = [AnswerTimeline(id=name) for name in answering.answers]
        for answer in answers:
            if report := answering.reports.get(answer.id):
                answer.finish_reason = report.finish_reason
        await asyncio.to_thread(  # there may be thousands of steps to decode
            trace_answers,
            self._ring.since(record.received),
            answers,
            received=record.received,
            opened=answering.opened,
            closed=record.closed,
        )
        return Timeline(
            answering.id,
            record.request_id,
            record.route,
            record.unix_time,
            record.seconds,
            record.closed is None,
            record.status,
            answers,
        )

    def _listen(self) -> None:
        llm, settings = self._llm, self._settings
        if settings.timelines:
            self._ring = StepRing()
            self._ends.append(llm.events.subscribe(self._ring))
        if settings.record is not None:
            recording = Recording(settings.record, llm.info, tokens=settings.record_tokens)
            stop = llm.events.subscribe(recording, detail=True, tokens=settings.record_tokens)
            self._ends += [stop, recording.close]
        if settings.trace is not None:
            trace = Trace(settings.trace, llm.model_name)
            self._ends += [llm.events.subscribe(trace), trace.close]


class HttpMetrics:
    """Requests by route and status, under the names that are usual for FastAPI servers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "HTTP requests answered; status as 2xx, or none if the client left before.",
            ["handler", "method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "From the first byte of a request to the last of its answer.",
            ["handler", "method"],
            registry=registry,
            buckets=HTTP_BUCKETS,
        )

    def count(self, record: Record) -> None:
        # The template, never the path: each label value is a series for ever.
        handler = record.route or "none"
        method = record.method if record.route else "none"
        status = "none" if record.status is None else f"{record.status // 100}xx"
        self._requests.labels(handler, method, status).inc()
        self._seconds.labels(handler, method).observe(record.seconds)


class Observer:
    """ASGI middleware, the outermost: tells an `Observation` of every request's begin and end."""

    def __init__(self, app: ASGIApp, observation: Observation) -> None:
        self._app = app
        self._observation = observation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = self._observation.received(scope)
        try:
            await self._app(scope, receive, send)  # as it is: a stream sends once per token
        finally:
            self._observation.ended(record, scope)
