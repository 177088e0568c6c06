"""A recording gives back what went in; damage and other files are errors with a name."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pellucid.errors import ConfigError
from pellucid.observe.recording import Recording, read_recording
from tests.engine.replay import Replay
from tests.observe.runs import CROWDED, crowded, decoded, info, run


def recorded(path: Path) -> list[bytes]:
    frames: list[bytes] = []
    recording = Recording(str(path), info(), tokens=True)
    run(crowded(), frames.append, recording, detail=True, **CROWDED)
    recording.close()
    return frames


def test_a_recording_gives_back_every_step(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    frames = recorded(path)
    header, steps = read_recording(path)
    assert (header.version, header.model, header.tokens) == (1, "fake", True)
    assert abs(time.time() - header.unix_time) < 60
    assert abs(time.monotonic() - header.monotonic) < 60
    assert list(steps) == decoded(frames)


def test_a_recording_is_enough_to_rebuild_the_pool(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    recorded(path)
    replay, usage = Replay(), []
    _, steps = read_recording(path)
    for step in steps:
        replay.apply(step)
        held = {block for request in replay.requests.values() for block in request.table}
        assert len(held) == step.pool.num_used
        assert len(replay.named) == step.pool.num_named
        usage.append(len(held))
    assert max(usage) > 10
    assert usage[-1] == 0


def test_a_recording_that_was_cut_off_is_good_up_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    frames = recorded(path)
    path.write_bytes(path.read_bytes()[: -len(frames[-1]) // 2])
    assert list(read_recording(path)[1]) == decoded(frames[:-1])


@pytest.mark.parametrize("content", [b"", b"PELLUCID", b"GGUF" * 9])
def test_other_files_are_no_recordings(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is no recording"):
        read_recording(path)


def test_another_version_and_damage_are_said(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    recorded(path)
    content = path.read_bytes()
    # magic, length, array header, then the version
    path.write_bytes(content[:13] + b"\x02" + content[14:])
    with pytest.raises(ConfigError, match="has version 2"):
        read_recording(path)
    first_frame = 12 + int.from_bytes(content[8:12], "little")
    path.write_bytes(content[:first_frame] + b"\xff" * 40)
    with pytest.raises(ConfigError, match="damaged"):
        list(read_recording(path)[1])


def test_a_file_that_cannot_be_written_or_read_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="record: cannot write") as caught:
        Recording(str(tmp_path / "no" / "run.rec"), info())
    assert caught.value.param == "record"
    with pytest.raises(ConfigError, match="cannot read"):
        read_recording(tmp_path / "none.rec")
