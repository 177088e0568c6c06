"""The workloads in process: load every engine, take turns, report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks.peers.engines import Engine, Weights
from benchmarks.peers.process import EngineError, EngineProcess
from benchmarks.peers.report import Report, merge, note_failure
from benchmarks.peers.rounds import Turn, compare, take_turns
from benchmarks.peers.workloads import Workload

DISTURBED = 0.1  # cores that something else used


def measure(
    report: Report,
    engines: Mapping[str, Engine],
    workloads: Iterable[Workload],
    weights: Weights,
    source: Path,
    rounds: int,
) -> None:
    """Add the workloads' figures, and what the engines say of themselves, to the report."""
    with ExitStack() as stack:
        processes: dict[str, EngineProcess] = {}
        for name, engine in engines.items():
            print(f"loading {name} ...", flush=True)
            process = stack.enter_context(engine.start(source))
            try:
                report["engines"][name] = engine.load(process, weights)
            except EngineError as error:
                note_failure(report, name, "load", str(error))
                continue
            report["failed"].pop(name, None)
            processes[name] = process
        for workload in workloads:
            print(f"-- {workload.name}, {rounds} rounds", flush=True)

            def show(name: str, turn: Turn, load: Workload = workload) -> None:
                foreign = turn["foreign_cpu"]
                note = f" (disturbed: {foreign:.1f} cores)" if foreign > DISTURBED else ""
                print(f"{name:22} {turn.get(load.measure, 0.0):9,.1f} tok/s{note}", flush=True)

            turns, failed = take_turns(processes, workload, rounds, show)
            for name, reason in failed.items():
                note_failure(report, name, workload.name, reason)
            merge(report, "in_process", workload.name, compare(turns, rounds))
