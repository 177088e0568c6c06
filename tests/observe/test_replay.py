"""A recording to look around in: begun anywhere, it comes to the same; damage has a name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pellucid.engine import events
from pellucid.errors import BadRequest, ConfigError, RequestNotFound
from pellucid.observe import replay
from pellucid.observe.recording import Recording
from pellucid.observe.replay import Replay
from pellucid.observe.trace import trace_parts
from pellucid.observe.xray import Totals
from tests.engine.replay import Replay as Oracle
from tests.observe.runs import CROWDED, crowded, decoded, info, run


@dataclass(repr=False)
class Run:
    """A recording, and the frames in it."""

    path: Path
    frames: list[bytes]


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A file with several places to begin at."""
    monkeypatch.setattr("pellucid.engine.recorder.events.SNAPSHOT_STEPS", 10)
    monkeypatch.setattr(replay, "MIN_CHUNK_STEPS", 15)
    path, frames = tmp_path / "run.rec", list[bytes]()
    recording = Recording(str(path), info(), tokens=True)
    run(crowded(), frames.append, recording, detail=True, **CROWDED)
    recording.close()
    return Run(path, frames)


def test_every_chunk_begins_with_all_it_needs(recorded: Run) -> None:
    path, frames = recorded.path, recorded.frames
    file, told = Replay(path), decoded(frames)
    assert file.num_steps == len(told)
    assert len(file.starts) > 2
    assert [start.first for start in file.starts][:3] == [0, 20, 40]
    whole, totals, position = Oracle(), Totals(), 0
    for nth in range(len(file.starts)):
        part, oracle = file.chunk(nth), Oracle()
        assert (part.first, part.totals) == (position, totals)
        for row in json.loads(msgspec.json.encode(part))["steps"]:
            step = msgspec.convert(row, events.StepEvents)
            oracle.apply(step)
            whole.apply(told[position])
            totals.add(told[position])
            position += 1
            assert oracle.__dict__ == whole.__dict__
            assert all(share.token_ids == [] for share in step.shares)
    assert position == len(told)
    assert (file.totals.finished, file.totals.generated) == (6, 120)
    with pytest.raises(BadRequest, match=f"between 0 and {len(file.starts) - 1}"):
        file.chunk(len(file.starts))


def test_a_requests_time_line_is_that_of_its_steps(recorded: Run) -> None:
    path, frames = recorded.path, recorded.frames
    file, told = Replay(path), decoded(frames)
    for name in ("a", "a2", "e"):
        life, answer = file.timeline(name)
        number = life.queued.number
        shares = [share for step in told for share in step.shares if share.number == number]
        assert sum(step.generated for step in answer.steps) == answer.output_tokens == 20
        assert sum(step.tokens for step in answer.steps) == sum(s.num_tokens for s in shares)
        assert answer.summary.endswith("finished: length")
        assert answer.preemptions == sum(p.number == number for s in told for p in s.preempted)
    with pytest.raises(RequestNotFound):
        file.timeline("nobody")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, 100_000))
def test_a_file_cut_anywhere_replays_to_its_end_or_says_why_not(recorded: Run, cut: int) -> None:
    path, frames = recorded.path, recorded.frames
    content = path.read_bytes()
    cut %= len(content) + 1
    shorter = path.with_suffix(".cut")
    shorter.write_bytes(content[:cut])
    begin = len(content) - sum(4 + len(frame) for frame in frames)
    if cut < begin + 4 + len(frames[0]):  # no whole step
        with pytest.raises(ConfigError, match=str(shorter)):
            Replay(shorter)
        return
    file = Replay(shorter)
    left, num_whole = cut - begin, 0
    while num_whole < len(frames) and left >= 4 + len(frames[num_whole]):
        left -= 4 + len(frames[num_whole])
        num_whole += 1
    assert (file.num_steps, file.num_cut) == (num_whole, left)
    assert list(file.steps()) == decoded(frames[:num_whole])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 100_000), value=st.integers(0, 255))
def test_a_damaged_file_is_refused_by_name_or_shown(recorded: Run, at: int, value: int) -> None:
    path = recorded.path
    content = bytearray(path.read_bytes())
    content[at % len(content)] = value
    damaged = path.with_suffix(".bad")
    damaged.write_bytes(content)
    try:
        file = Replay(damaged)
    except ConfigError as error:
        assert str(damaged) in error.message  # noqa: PT017 - or none
        return
    for nth in range(len(file.starts)):
        json.loads(msgspec.json.encode(file.chunk(nth)))
    json.loads(b"".join(trace_parts(file.steps(), "fake")))


def test_a_step_of_a_request_that_never_came_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    recording = Recording(str(path), info())
    pool = events.Pool(0, 14, 0)
    first = events.StepEvents(0, 1.0, 0, 0, 0, 0, 0, pool)
    first.snapshot = events.Snapshot([], [], detail=True)
    second = events.StepEvents(1, 2.0, 0, 0, 0, 0, 0, pool, [events.Share(7, 0, 1, False, 1)])
    for step in (first, second):
        recording(events.encode(step))
    recording.close()
    with pytest.raises(ConfigError, match=r"damaged at byte \d+: there is no request 7"):
        Replay(path)


def test_a_file_without_steps_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    Recording(str(path), info()).close()
    with pytest.raises(ConfigError, match="has no steps"):
        Replay(path)
