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
from pellucid.observe.spans import Spans
from pellucid.observe.timeline import AnswerTimeline, trace_answers
from pellucid.server.job import Job
from pellucid.server.watch import Watch, tag_of

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
    """One server's; `close` ends what it began. Raises ConfigError for a bad URL.

    Args:
        several: there is more than one model, so that files are told apart by the model's name.
    """

    def __init__(
        self, settings: ObserveSettings, registry: CollectorRegistry, *, several: bool
    ) -> None:
        self._settings = settings
        self._several = several
        self._ends: list[Callable[[], object]] = []
        self._http = HttpMetrics(registry)
        self.ledger = Ledger(settings.timelines)
        self.ledger.on_close.append(logs.log_request)
        if settings.otlp_endpoint is not None:
            spans = Spans.to_collector(settings.otlp_endpoint)
            self.ledger.on_close.append(spans)
            self._ends.append(spans.close)

    def watch(self, llm: AsyncLLM, nth: int) -> Watch:
        """Look on at a model that was loaded for the `nth` time. Raises ConfigError for a file."""
        llm.listeners.append(self.ledger)
        tag = tag_of(llm.model_name, several=self._several, nth=nth)
        return Watch(llm, self._settings, tag)

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

    def opened(
        self,
        record: Record | None,
        job: Job,
        llm: AsyncLLM,
        watch: Watch,
        opened: float,
        stream: bool,
        *,
        model: str,
    ) -> None:
        """`job` answers the request; its prompts went to the engine of `llm`, which is `model`."""
        if record is None:  # not from the network
            return
        prompts = None
        if self._settings.log_prompts:
            prompts = [
                g.request.prompt or llm.decode(g.prompt_token_ids, skip_special_tokens=False)
                for g in job.generations
            ]
        answers = [s.request_id for g in job.generations for s in g.request.sequences]
        answering = Answering(job.id, model, job.params, stream, opened, answers, watch.ring)
        answering.prompts = prompts
        self.ledger.open(record, answering)

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
        record = self.ledger.find(request_id)
        answering = record.answering if record else None
        if record is None or answering is None or answering.ring is None:
            kept = self._settings.timelines
            raise RequestNotFound(
                f"No request {request_id!r} is known; the last {kept} are kept (--timelines).",
                param="id",
                code="request_not_found",
            )
        answers = [AnswerTimeline(id=name) for name in answering.answers]
        for answer in answers:
            if report := answering.reports.get(answer.id):
                answer.finish_reason = report.finish_reason
        await asyncio.to_thread(  # there may be thousands of steps to decode
            trace_answers,
            answering.ring.steps_since(record.received),
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
