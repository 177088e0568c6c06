"""What watching costs: the engine's share of a decode step, the front end's for each listener, and
what is left of the tokens per second when 32 streams are recorded or watched by an open page.

Runs with and without listeners take turns on the same engine, so that the machine's moods hit all
of them alike.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.engine_speed import GREEDY, make_engine
from benchmarks.report import save
from benchmarks.step_overhead import Stopwatch, decode_steps
from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.messages import Observe
from pellucid.observe.recording import Recording
from pellucid.observe.timeline import StepRing
from pellucid.observe.trace import Trace
from pellucid.observe.xray import Feed
from pellucid.sampling_params import SamplingParams
from pellucid.server.sse import event
from pellucid.server.xray import Message

BATCH = 32
STEPS_IN_WINDOW = 8  # of 100 ms
ROUNDS = 7
STREAM_ROUNDS = 21  # a run differs from the next by some percent, whoever watches
STREAM_TOKENS = 96
CASES = {
    "nobody": Observe(num_listeners=0),
    "timelines": Observe(num_listeners=1),
    "record": Observe(num_listeners=2, detail=True),
    "record_tokens": Observe(num_listeners=2, detail=True, tokens=True),
}


class OpenPage:
    """What an open page costs the front end: every step kept as JSON, and windows of them sent."""

    def __init__(self) -> None:
        self._feed = Feed()
        self._position: int | None = None
        self._steps = 0

    def __call__(self, frame: bytes) -> None:
        self._feed(frame)
        self._steps += 1
        if self._steps % STEPS_IN_WINDOW == 0 and (part := self._feed.take(self._position)):
            self._position = part.first + len(part.steps)
            event(Message(time.monotonic(), part=part))


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


@contextmanager
def watching(llm: AsyncLLM, case: str) -> Iterator[None]:
    """A listener as `pellucid serve` has it: nobody, --record, or one open page."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as ends:
        if case == "record":
            recording = Recording(str(Path(folder) / "run.rec"), llm.info)
            ends.callback(recording.close)
            ends.callback(llm.events.subscribe(recording, detail=True))
        elif case == "page":
            ends.callback(llm.events.subscribe(OpenPage(), detail=True))
        yield


async def streams_per_second(llm: AsyncLLM) -> float:
    """Tokens per second of `BATCH` streams at once, prompts included."""
    params = SamplingParams(max_tokens=STREAM_TOKENS, temperature=0.0, ignore_eos=True)

    async def read(nth: int) -> None:
        prompt = [(37 * nth + k) % 40_000 + 100 for k in range(64)]
        async for _ in llm.generate(prompt, params):
            pass

    begin = time.perf_counter()
    await asyncio.gather(*(read(nth) for nth in range(BATCH)))
    return BATCH * STREAM_TOKENS / (time.perf_counter() - begin)


async def whole_side() -> dict[str, Any]:
    """Tokens per second of 32 streams, engine and front end in their processes, by who watches.

    `of_nobody` is the median of the rounds' ratios to the run of the same round with no listener.
    """
    rates: dict[str, list[float]] = {"nobody": [], "record": [], "page": []}
    config = EngineConfig.of(
        kernels="native", max_num_seqs=BATCH, speculative="none", prefix_caching=False
    )
    async with AsyncLLM(config) as llm:
        await streams_per_second(llm)  # warm
        for first in range(STREAM_ROUNDS):
            for turn in range(len(rates)):  # so that none of them always comes first
                case = list(rates)[(first + turn) % len(rates)]
                with watching(llm, case):
                    rates[case].append(await streams_per_second(llm))
    results = {}
    for case, measured in rates.items():
        ratios = [rate / base for rate, base in zip(measured, rates["nobody"], strict=True)]
        results[case] = {
            "tokens_per_s": statistics.median(measured),
            "of_nobody": statistics.median(ratios),
            "range": [min(ratios), max(ratios)],
        }
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
    whole = asyncio.run(whole_side())
    for name, figures in whole.items():
        print(
            f"{name:14} {figures['tokens_per_s']:7.0f} tokens/s, {figures['of_nobody']:.3f} of "
            f"those with nobody ({figures['range'][0]:.3f} to {figures['range'][1]:.3f})"
        )
    size = statistics.mean(len(frame) for frame in frames)
    save(
        "recording_cost",
        {"engine": inside, "front_end": outside, "whole": whole, "bytes_per_step": size},
        batch=BATCH,
        rounds=ROUNDS,
        stream_rounds=STREAM_ROUNDS,
        stream_tokens=STREAM_TOKENS,
    )
