"""OpenTelemetry: one span per request, by the semantic conventions for generative AI.

https://github.com/open-telemetry/semantic-conventions-genai (status: development). Attributes that
they do not name are under `pellucid.`. No prompt and no answer is in a span.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from pellucid import __version__
from pellucid.errors import ConfigError
from pellucid.observe.ledger import Answering, Record, Totals, total

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

FAREWELL_SECONDS = 2.0

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/generate": "text_completion",
    "/generate_stream": "text_completion",
    "/v1/embeddings": "embeddings",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
}
PARAMETERS = {  # of SamplingParams, by attribute
    "gen_ai.request.max_tokens": "max_tokens",
    "gen_ai.request.temperature": "temperature",
    "gen_ai.request.top_p": "top_p",
    "gen_ai.request.seed": "seed",
    "gen_ai.request.frequency_penalty": "frequency_penalty",
    "gen_ai.request.presence_penalty": "presence_penalty",
}


class Spans:
    """Makes a span of every request that went to the engine; see `Ledger.on_close`."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("pellucid", __version__)
        self._extract = TraceContextTextMapPropagator().extract

    @classmethod
    def to_collector(cls, endpoint: str) -> Spans:
        """Send spans by OTLP over HTTP, in the background.

        Args:
            endpoint: the collector's URL; `/v1/traces` is added to one without a path.

        Raises:
            ConfigError: the packages are missing, or the URL is none.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise ConfigError(
                "otlp_endpoint: needs OpenTelemetry: pip install 'pellucid[otel]'",
                param="otlp_endpoint",
            ) from None
        exporter = OTLPSpanExporter(endpoint=_traces_url(endpoint))
        facts = {"service.name": "pellucid", "service.version": __version__}
        provider = TracerProvider(resource=Resource.create(facts), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def __call__(self, record: Record) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        answering = record.answering
        if answering is None or record.closed is None:
            return
        offset = record.unix_time - record.received

        def nanoseconds(when: float) -> int:
            return int((when + offset) * 1e9)

        carrier = {"traceparent": record.traceparent} if record.traceparent else {}
        totals = total(answering.reports.values())
        operation = OPERATIONS.get(record.route, "chat")
        span = self._tracer.start_span(
            f"{operation} {answering.model}",
            context=self._extract(carrier),
            kind=SpanKind.SERVER,
            start_time=nanoseconds(record.received),
            attributes=self._attributes(record, answering, totals, operation),
        )
        for name, when in _moments(answering):
            span.add_event(name, timestamp=nanoseconds(when))
        if (record.status or 0) >= 500 or "error" in totals.finish_reasons:
            span.set_status(Status(StatusCode.ERROR))
        span.end(nanoseconds(record.closed))

    def close(self) -> None:
        """Send what is left; blocks for at most FAREWELL_SECONDS, even if nobody takes it."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(FAREWELL_SECONDS)

    def _attributes(
        self, record: Record, answering: Answering, totals: Totals, operation: str
    ) -> dict[str, Any]:
        params = answering.params
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "pellucid",
            "gen_ai.request.model": answering.model,
            "gen_ai.response.model": answering.model,
            "gen_ai.response.id": answering.id,
            "gen_ai.response.finish_reasons": [str(reason) for reason in totals.finish_reasons],
            "gen_ai.usage.input_tokens": totals.prompt_tokens,
            "gen_ai.usage.output_tokens": totals.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": totals.cached_tokens,
            "gen_ai.request.stream": answering.stream,
            "http.request.method": record.method,
            "http.route": record.route,
            "pellucid.request_id": record.request_id,
            "pellucid.preemptions": totals.preemptions,
        }
        for attribute, name in PARAMETERS.items():
            if operation != "embeddings" and (value := getattr(params, name)) is not None:
                attributes[attribute] = value
        if params.top_k > 0:
            attributes["gen_ai.request.top_k"] = params.top_k
        if params.n > 1:
            attributes["gen_ai.request.choice.count"] = params.n
        if params.stop:
            attributes["gen_ai.request.stop_sequences"] = list(params.stop)
        if record.status is not None:
            attributes["http.response.status_code"] = record.status
            if record.status >= 400:
                attributes["error.type"] = str(record.status)
        for phase in ("queue", "prefill", "decode"):
            if (seconds := getattr(totals, phase)) is not None:
                attributes[f"pellucid.{phase}.seconds"] = seconds
        return attributes


def _moments(answering: Answering) -> list[tuple[str, float]]:
    """When the first of the answers reached each point."""
    times = [report.times for report in answering.reports.values()]
    moments = [("handed to the engine", answering.opened)]
    for name, field in (("scheduled", "scheduled"), ("first token", "first_token")):
        reached = [when for each in times if (when := getattr(each, field)) is not None]
        if reached:
            moments.append((name, min(reached)))
    return moments


def _traces_url(endpoint: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(
            f"otlp_endpoint: must be an http(s) URL, got {endpoint!r}", param="otlp_endpoint"
        )
    return endpoint if parts.path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
