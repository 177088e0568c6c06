"""The trace obeys the Trace Event Format as Google documents it, and tells what happened."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from pellucid.observe.trace import ENGINE, REQUESTS, Trace
from tests.observe.runs import CROWDED, add, crowded, decoded, guessed, run
from tests.observe.trace_format import check_format


@pytest.fixture
def traced(tmp_path: Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    frames: list[bytes] = []
    trace = Trace.to_path(str(tmp_path / "run.json"), "fake")
    run(crowded(), frames.append, trace, **CROWDED)
    trace.close()
    return json.loads((tmp_path / "run.json").read_bytes()), frames


def test_every_event_has_the_fields_of_the_format(
    traced: tuple[list[dict[str, Any]], list[bytes]],
) -> None:
    check_format(traced[0])


def test_slices_of_a_track_nest(traced: tuple[list[dict[str, Any]], list[bytes]]) -> None:
    """A viewer draws overlapping slices of one track wrongly, or not at all."""
    tracks: defaultdict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in traced[0]:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert len(tracks) >= 4
    for slices in tracks.values():
        open_ends: list[float] = []
        for begin, end in sorted(slices, key=lambda s: (s[0], -s[1])):
            while open_ends and open_ends[-1] <= begin + 0.002:  # nanoseconds were rounded
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1] + 0.002
            open_ends.append(end)


def test_it_tells_what_the_events_told(
    traced: tuple[list[dict[str, Any]], list[bytes]],
) -> None:
    trace, frames = traced
    steps = [step for step in decoded(frames) if step.shares]
    drawn = [e for e in trace if e["pid"] == ENGINE and e["name"].startswith("step ")]
    assert [e["name"] for e in drawn] == [f"step {step.step}" for step in steps]
    assert sum(e["args"]["prefill_tokens"] + e["args"]["decode_tokens"] for e in drawn) == sum(
        share.num_tokens for step in steps for share in step.shares
    )
    requests = {e["name"]: e["args"] for e in trace if "output_tokens" in e.get("args", {})}
    assert requests.keys() == {"a", "b", "a2", "c", "d", "e"}
    assert all(args["output_tokens"] == 20 for args in requests.values())
    preemptions = sum(len(step.preempted) for step in steps)
    assert preemptions > 0
    assert sum(args["preemptions"] for args in requests.values()) == preemptions
    assert len([e for e in trace if e["name"] == "first token"]) == 6
    phases = {e["name"] for e in trace if e["pid"] == REQUESTS and e["ph"] == "X"}
    assert {"queue", "prefill", "decode", "preempted"} <= phases


def test_a_run_that_goes_on_is_ended_and_one_that_was_killed_still_opens(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    trace = Trace.to_path(str(path), "fake")
    frames: list[bytes] = []
    run([add("a", 9)], frames.append)
    for frame in frames[:3]:
        trace(frame)
    trace._file.flush()
    assert json.loads(path.read_bytes() + b"]")  # viewers add the bracket
    trace.close()
    ended = json.loads(path.read_bytes())
    assert [e["args"]["reason"] for e in ended if e["name"] == "a"] == ["still open"]


def test_who_listens_late_draws_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    frames: list[bytes] = []
    engine_frames: list[bytes] = []
    trace = Trace.to_path(str(path), "fake")
    run([add("a", 9), add("b", 9)], engine_frames.append)
    frames = engine_frames[2:]  # without the snapshot: nothing can be told
    for frame in frames:
        trace(frame)
    trace.close()
    assert all(e["ph"] == "M" for e in json.loads(path.read_bytes()))


def test_guessing_has_its_own_slice_between_planning_and_the_forward_pass(tmp_path: Path) -> None:
    path, frames = tmp_path / "run.json", list[bytes]()
    trace = Trace.to_path(str(path), "fake")
    run(crowded(), frames.append, trace, drafting=guessed(crowded()), **CROWDED)
    trace.close()
    steps = [step for step in decoded(frames) if step.shares]
    slices = [e for e in json.loads(path.read_bytes()) if e["pid"] == ENGINE and e["ph"] == "X"]
    drafts = [e["dur"] for e in slices if e["name"] == "draft"]
    assert drafts == [round(1e6 * s.draft_seconds, 3) for s in steps if s.draft_seconds]
    assert len(drafts) >= sum(any(share.num_drafts for share in step.shares) for step in steps) > 5
    for step in slices:
        if step["name"].startswith("step ") and step["args"].get("drafts"):
            inside = [e for e in slices if step["ts"] <= e["ts"] < step["ts"] + step["dur"]]
            names = [e["name"] for e in sorted(inside, key=lambda e: (e["ts"], -e["dur"]))]
            assert names[1:4] == ["schedule", "draft", "forward"]
