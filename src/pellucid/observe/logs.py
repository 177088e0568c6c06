"""Log lines: for people, or one JSON object per line for machines.

A record's `extra={"fields": {...}}` become keys of the object, or `key=value` after the message.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from pellucid.frontend.stats import RequestReport, StepReport
from pellucid.observe.ledger import Record, total

requests = logging.getLogger("pellucid.requests")
throughput = logging.getLogger("pellucid.throughput")
access = logging.getLogger("pellucid.access")


class JsonFormatter(logging.Formatter):
    """One line, whatever is in the message: JSON has no raw line breaks."""

    _encoder = msgspec.json.Encoder(enc_hook=str)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return self._encoder.encode(line).decode()


class TextFormatter(logging.Formatter):
    """The message, then its fields; values with spaces are quoted as in JSON."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        told = [f"{name}={_shown(value)}" for name, value in _fields(record).items()]
        return " ".join([super().formatMessage(record), *told])


def configure(level: str, log_format: Literal["text", "json"]) -> None:
    """Send all logging of this process to stderr in one format."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def log_request(record: Record) -> None:
    """One line for a request that went to the engine."""
    answering = record.answering
    if answering is None:
        return
    totals = total(answering.reports.values())
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "id": answering.id,
        "model": answering.model,
        "route": record.route,
        "status": record.status,
        "seconds": round(record.seconds, 4),
        "queue": _rounded(totals.queue),
        "prefill": _rounded(totals.prefill),
        "decode": _rounded(totals.decode),
        "prompt_tokens": totals.prompt_tokens,
        "cached_tokens": totals.cached_tokens,
        "output_tokens": totals.output_tokens,
        "preemptions": totals.preemptions,
        "finish_reason": ",".join(totals.finish_reasons) or None,
    }
    if answering.prompts is not None:
        fields["prompts"] = answering.prompts
    requests.info("request ended", extra={"fields": fields})


def log_access(record: Record) -> None:
    """One line for any HTTP request."""
    fields = {
        "request_id": record.request_id,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "seconds": round(record.seconds, 4),
    }
    access.info("access", extra={"fields": fields})


class ThroughputLog:
    """A `StatsListener` that says every `interval` seconds what was done; silent while idle."""

    def __init__(self, interval: float, num_kv_blocks: int, model: str) -> None:
        self._interval = interval
        self._model = model
        self._num_kv_blocks = num_kv_blocks
        self._last_step = 0.0
        self._reset(time.monotonic())

    def on_step(self, report: StepReport) -> None:
        stats = report.stats
        if stats.time - self._last_step > self._interval:  # it was idle, which is no time to count
            self._reset(stats.time)
        self._last_step = stats.time
        self._prompt += stats.num_prompt_tokens
        self._generated += stats.num_generated_tokens
        self._queries += stats.prefix_queries
        self._hits += stats.prefix_hits
        seconds = stats.time - self._begin
        if seconds < self._interval:
            return
        fields = {
            "model": self._model,
            "prompt_tokens_per_s": round(self._prompt / seconds, 1),
            "generated_tokens_per_s": round(self._generated / seconds, 1),
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "kv_usage": round(stats.kv_blocks_used / self._num_kv_blocks, 3),
            "prefix_hit_rate": round(self._hits / self._queries, 3) if self._queries else None,
        }
        throughput.info("throughput", extra={"fields": fields})
        self._reset(stats.time)

    def on_finish(self, report: RequestReport) -> None:
        pass

    def _reset(self, now: float) -> None:
        self._begin = now
        self._prompt = self._generated = self._queries = self._hits = 0


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    quoted = not text.isprintable() or " " in text or not text
    return msgspec.json.encode(text).decode() if quoted and isinstance(value, str) else text


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
