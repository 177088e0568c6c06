"""Log lines that machines and people can read, whatever is in them."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime

import pytest

from pellucid.frontend.stats import StepReport
from pellucid.messages import StepStats
from pellucid.observe.logs import JsonFormatter, TextFormatter, ThroughputLog


def entry(message: str, *arguments: object, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord("pellucid.x", logging.INFO, "f", 1, message, arguments, None)
    record.fields = fields
    return record


def test_a_json_line_is_one_line_with_the_fields_as_keys() -> None:
    text = JsonFormatter().format(entry("two\nlines %d", 7, id="a b", seconds=0.5, none=None))
    assert "\n" not in text
    line = json.loads(text)
    assert line.pop("time")[:10] == datetime.fromisoformat(json.loads(text)["time"]).strftime(
        "%Y-%m-%d"
    )
    assert line == {
        "level": "info",
        "logger": "pellucid.x",
        "message": "two\nlines 7",
        "id": "a b",
        "seconds": 0.5,
        "none": None,
    }


def test_a_json_line_carries_the_traceback() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = entry("failed")
        record.exc_info = sys.exc_info()
    assert "ValueError: no" in json.loads(JsonFormatter().format(record))["exception"]


def test_a_text_line_cannot_be_broken_by_a_value() -> None:
    text = TextFormatter().format(
        entry("ended", path="/a\nERROR forged", id="x", seconds=0.5, reason=None)
    )
    assert text.endswith(
        'INFO pellucid.x: ended path="/a\\nERROR forged" id=x seconds=0.5 reason=null'
    )
    assert "\n" not in text


def test_throughput_is_told_while_busy_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = ThroughputLog(10.0, num_kv_blocks=100, model="tiny")

    def step(at: float) -> None:
        stats = StepStats(
            step=1,
            time=at,
            num_running=3,
            num_waiting=2,
            kv_blocks_used=25,
            num_prompt_tokens=10,
            num_generated_tokens=20,
            prefix_queries=8,
            prefix_hits=2,
        )
        log.on_step(StepReport(stats))

    for at in range(1000, 1011):
        step(float(at))
    step(5000.0)  # an hour of nothing is no low throughput
    (told,) = caplog.records
    assert told.fields == {
        "model": "tiny",
        "prompt_tokens_per_s": 11.0,
        "generated_tokens_per_s": 22.0,
        "running": 3,
        "waiting": 2,
        "kv_usage": 0.25,
        "prefix_hit_rate": 0.25,
    }
