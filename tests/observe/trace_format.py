"""The Trace Event Format, as Google documents it."""

from __future__ import annotations

from typing import Any

# Per phase: the fields it must have beside ph, pid, tid and name.
REQUIRED = {"X": {"ts", "dur"}, "C": {"ts", "args"}, "i": {"ts", "s"}, "M": {"args"}}
ALLOWED = {"ph", "pid", "tid", "name", "ts", "dur", "args", "s"}
METADATA = {"process_name", "thread_name"}


def check_format(trace: list[dict[str, Any]]) -> None:
    """Every event has the fields that its phase must have, and no others."""
    for event in trace:
        assert {"ph", "pid", "tid", "name"} | REQUIRED[event["ph"]] <= event.keys() <= ALLOWED
        assert isinstance(event["name"], str)
        assert all(isinstance(event[key], int) for key in ("pid", "tid"))
        for key in ("ts", "dur"):
            assert event.get(key, 0) >= 0
        if event["ph"] == "M":
            assert event["name"] in METADATA
            assert isinstance(event["args"]["name"], str)
        if event["ph"] == "C":
            assert all(isinstance(value, int) and value >= 0 for value in event["args"].values())
        if event["ph"] == "i":
            assert event["s"] in "gpt"
