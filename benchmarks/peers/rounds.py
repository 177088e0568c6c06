"""The interleaved run: all engines loaded, one at work, A B C ..., A B C ...

A machine's speed drifts, so engines are compared within a round and the ratios' median is
reported. An engine that waits must not compute, and nothing else should: what the waiting ones
and the rest of the machine used, in cores, is kept with each figure (of the worst round).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import psutil

from benchmarks.peers.engines import PELLUCID
from benchmarks.peers.process import EngineError, Speaker
from benchmarks.peers.workloads import Workload, rates

WARMUP_TOKENS = 8
PAUSE = 0.3  # seconds, in which the threads of the last engine go to sleep
Turn = dict[str, float]


def take_turns(
    engines: Mapping[str, Speaker],
    workload: Workload,
    rounds: int,
    on_turn: Callable[[str, Turn], None] = lambda name, turn: None,
    pause: float = PAUSE,
) -> tuple[dict[str, list[Turn]], dict[str, str]]:
    """Each engine's rates, one entry per round, and the reasons of those that failed.

    The first turn of each, on shorter answers, only warms up.
    """

    def turn(name: str, number: int) -> Turn:
        time.sleep(pause)
        load = workload if number else workload.shortened(WARMUP_TOKENS)
        return _turn(engines, name, load, number)

    _, failed = alternate(engines, [0], turn)
    ready = [name for name in engines if name not in failed]
    turns, failed_later = alternate(ready, range(1, rounds + 1), turn, on_turn)
    return turns, failed | failed_later


def alternate(
    names: Iterable[str],
    numbers: Iterable[int],
    work: Callable[[str, int], Turn],
    on_turn: Callable[[str, Turn], None] = lambda name, turn: None,
) -> tuple[dict[str, list[Turn]], dict[str, str]]:
    """All names' turns at number 1, all at number 2, ...; and the reasons of those that failed.

    Who fails is left out from then on, so that all that remain have the same rounds.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for number in numbers:
        for name in list(turns):
            try:
                turn = work(name, number)
            except EngineError as error:
                failed[name] = str(error)
                del turns[name]
                continue
            turns[name].append(turn)
            on_turn(name, turn)
    return turns, failed


def _turn(engines: Mapping[str, Speaker], name: str, load: Workload, number: int) -> Turn:
    before = _cpu_seconds(engines, name)
    begin = time.perf_counter()
    answer = engines[name].call(
        "generate", prompts=load.prompts(number), output_len=load.output_len
    )
    seconds = time.perf_counter() - begin
    times: list[list[float]] = answer["times"]
    if any(len(each) != load.output_len for each in times):
        raise EngineError(f"answers of {sorted({len(each) for each in times})} tokens")
    worker, waiting, machine = (
        (now - then) / seconds
        for now, then in zip(_cpu_seconds(engines, name), before, strict=True)
    )
    foreign = max(0.0, machine - worker - waiting)
    return {**rates(times, load.input_len), "waiting_cpu": waiting, "foreign_cpu": foreign}


def _cpu_seconds(engines: Mapping[str, Speaker], name: str) -> tuple[float, float, float]:
    """Processor time so far: of the engine at work, of those that wait, of the whole machine.

    The machine's includes what a hypervisor gave to others.
    """
    waiting = [engine.cpu_seconds() for other, engine in engines.items() if other != name]
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted twice
    return engines[name].cpu_seconds(), sum(waiting), sum(times) - guests - idle


def compare(turns: Mapping[str, Sequence[Turn]], rounds: int) -> dict[str, dict[str, Any]]:
    """Per engine: median and range of each rate, and how many times as fast pellucid was.

    The ratio is taken round by round; its median and range are given.
    """
    report: dict[str, dict[str, Any]] = {}
    base = turns.get(PELLUCID)
    for name, each in turns.items():
        report[name] = {"rounds": rounds}
        for measure in ("prefill", "decode", "output"):
            values = [turn[measure] for turn in each if measure in turn]
            if len(values) < rounds:
                continue
            entry: dict[str, Any] = {"tokens_per_s": spread(values)}
            ours = [turn[measure] for turn in base or () if measure in turn]
            if name != PELLUCID and len(ours) == rounds:
                pairs = zip(ours, values, strict=True)
                entry["pellucid_tokens_per_s"] = spread(ours)
                entry["pellucid_times_as_fast"] = spread([a / b for a, b in pairs])
            report[name][measure] = entry
        for disturbance in ("waiting_cpu", "foreign_cpu"):
            report[name][disturbance] = max(turn[disturbance] for turn in each)
    return report


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}
