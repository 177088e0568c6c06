"""What watching costs: the engine's share of a decode step, and the front end's for each listener.

Runs with and without listeners take turns on the same engine, so that the machine's moods hit all
of them alike.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.engine_speed import GREEDY, make_engine
from benchmarks.report import save
from benchmarks.step_overhead import Stopwatch, decode_steps
from pellucid.engine.core import EngineCore
from pellucid.messages import Observe
from pellucid.observe.recording import Recording
from pellucid.observe.timeline import StepRing
from pellucid.observe.trace import Trace
from pellucid.observe.xray import Xray
from pellucid.server.sse import event
from pellucid.server.xray import Message

BATCH = 32
STEPS_IN_WINDOW = 8  # of 100 ms
ROUNDS = 7
CASES = {
    "nobody": Observe(num_listeners=0),
    "timelines": Observe(num_listeners=1),
    "record": Observe(num_listeners=2, detail=True),
    "record_tokens": Observe(num_listeners=2, detail=True, tokens=True),
}


class OpenPage:
    """What a page's reader costs: the state of every step, and every window as JSON."""

    def __init__(self) -> None:
        self._xray = Xray()
        self._steps = 0

    def __call__(self, frame: bytes) -> None:
        self._xray(frame)
        self._steps += 1
        if self._steps % STEPS_IN_WINDOW == 0:
            event(Message(time.monotonic(), window=self._xray.take()))


def engine_side(engine: EngineCore) -> dict[str, Any]:
    """Microseconds of a step, and of the recorder in it, by who listens."""
    watch = Stopwatch()
    watch.watch(engine._recorder, "step", "recorder")
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, wanted in CASES.items():
            engine.handle(wanted)
            steps[name] += decode_steps(engine, watch, GREEDY, BATCH)
    results = {}
    for name, measured in steps.items():
        whole = 1e6 * statistics.median(step["step"] for step in measured)
        spent = 1e6 * statistics.median(step.get("recorder", 0.0) for step in measured)
        results[name] = {"step_us": whole, "recorder_us": spent, "share": spent / whole}
    return results


def frames_of_a_run(engine: EngineCore) -> list[bytes]:
    engine.handle(CASES["record"])
    frames: list[bytes] = []
    step = engine.step

    def step_and_keep() -> Any:
        output = step()
        frames.append(output.events)
        return output

    engine.step = step_and_keep  # type: ignore[method-assign]
    decode_steps(engine, Stopwatch(), GREEDY, BATCH)
    return frames


def front_end_side(engine: EngineCore, frames: list[bytes], step_us: float) -> dict[str, Any]:
    """Microseconds that each listener takes for the events of one step."""
    with tempfile.TemporaryDirectory() as folder:
        sinks: dict[str, Callable[[bytes], None]] = {
            "timelines": StepRing(),
            "record": Recording(str(Path(folder) / "run.rec"), engine.info),
            "trace": Trace.to_path(str(Path(folder) / "run.json"), "model"),
            "page": OpenPage(),
        }
        results = {}
        for name, sink in sinks.items():
            seconds = []
            for frame in frames:
                begin = time.perf_counter()
                sink(frame)
                seconds.append(time.perf_counter() - begin)
            spent = 1e6 * statistics.mean(seconds)
            results[name] = {"frame_us": spent, "share": spent / step_us}
    return results


def main() -> None:
    engine = make_engine({"kernels": "native"})
    inside = engine_side(engine)
    frames = frames_of_a_run(engine)
    outside = front_end_side(engine, frames, inside["nobody"]["step_us"])
    for name, figures in inside.items():
        print(
            f"{name:14} step {figures['step_us']:7.0f} us, of it recorder "
            f"{figures['recorder_us']:4.0f} us ({figures['share']:.2%})"
        )
    for name, figures in outside.items():
        print(f"{name:14} front end {figures['frame_us']:4.1f} us a step ({figures['share']:.2%})")
    size = statistics.mean(len(frame) for frame in frames)
    save(
        "recording_cost",
        {"engine": inside, "front_end": outside, "bytes_per_step": size},
        batch=BATCH,
        rounds=ROUNDS,
    )
