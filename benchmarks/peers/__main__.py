"""`python -m benchmarks.peers`: install the other engines and measure pellucid beside them.

The figures of each run are merged into benchmarks/results/peers.json, so the whole can be measured
in parts; tables and picture are made from that file.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks.peers import report as reports
from benchmarks.peers.engines import ENGINES, LARGER_ENGINES, PELLUCID, SOURCE, Engine, Weights
from benchmarks.peers.environments import install_all
from benchmarks.peers.fidelity import measure_fidelity
from benchmarks.peers.in_process import measure
from benchmarks.peers.over_http import LOAD_GENERATOR, SERVERS, measure_http
from benchmarks.peers.over_http import WORKLOADS as HTTP
from benchmarks.peers.plot import draw
from benchmarks.peers.workloads import WORKLOADS, Workload


class OfPeer(Protocol):
    """An engine or a server: something with weights that runs in a peer's environment."""

    @property
    def peer(self) -> str | None: ...

    @property
    def weights(self) -> str: ...


Kind = TypeVar("Kind", bound=OfPeer)
QUICK = ("prefill_512", "decode_1", "decode_8")
QUICK_TOKENS = 32
ALL_ENGINES = tuple(dict.fromkeys([*ENGINES, *LARGER_ENGINES, *SERVERS]))
ALL_WORKLOADS = (*WORKLOADS, *HTTP, "fidelity")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the engines are ended, too
    report = reports.read()
    try:
        if not options.report_only:
            run(options, report)
    finally:  # what was measured before an interrupt stands
        print_tables(report)
        if not options.quick:
            reports.write(report)
            reports.fill(report)
            draw(report)


def run(options: argparse.Namespace, report: reports.Report) -> None:
    """Install what is needed, then measure what was asked for."""
    here, weights, chosen = available(options, report), Weights.of(options.model), options.workloads
    for engine in here(ENGINES).values():  # made once, and not while something is measured
        weights.path(engine.weights)
    if options.install_only:
        return
    loads = [WORKLOADS[name] for name in chosen if name in WORKLOADS]
    if options.quick:
        loads = [load.shortened(QUICK_TOKENS) for load in loads]
    groups: list[tuple[Mapping[str, Engine], list[Workload], Weights | None]] = [
        (ENGINES, [load for load in loads if not load.larger], weights),
        (
            LARGER_ENGINES,
            [load for load in loads if load.larger],
            Weights.of(options.larger_model) if options.larger_model else None,
        ),
    ]
    for engines, group, files in groups:
        if group and files is None:
            print("the larger_* workloads need --larger-model FILE: left out")
        elif group and files is not None:
            measure(report, here(engines), group, files, options.source, options.rounds)
    if http := [name for name in chosen if name in HTTP]:
        measure_http(report, here(SERVERS), http, weights, options.source, options.rounds)
    if "fidelity" in chosen:
        measure_fidelity(report, here(ENGINES), weights, options.source)


def available(
    options: argparse.Namespace, report: reports.Report
) -> Callable[[Mapping[str, Kind]], dict[str, Kind]]:
    """Install what the choice needs; returns what leaves only chosen, installed engines."""
    wanted = {PELLUCID, *options.engines}
    known: dict[str, OfPeer] = {**LARGER_ENGINES, **SERVERS, **ENGINES}
    peers = set[str | None]()
    for name in wanted:
        peers |= {known[name].peer, Weights.MADE_BY.get(known[name].weights)}
    if any(name in HTTP for name in options.workloads):
        peers |= {LOAD_GENERATOR, Weights.MADE_BY["checkpoint"]}  # which brings the tokenizer
    needed = sorted(peer for peer in peers if peer)
    reasons = install_all(needed)
    for peer in needed:
        report["unavailable"].pop(peer, None)
    report["unavailable"].update(reasons)

    def here(engines: Mapping[str, Kind]) -> dict[str, Kind]:
        return {
            name: engine
            for name, engine in engines.items()
            if name in wanted
            and reasons.keys().isdisjoint({engine.peer, Weights.MADE_BY.get(engine.weights)})
        }

    return here


def print_tables(report: reports.Report) -> None:
    for section, table in reports.TABLES.items():
        if report[section]:
            print(f"\n{table(report)}")
    for kind in ("unavailable", "failed"):
        for name, reason in report[kind].items():
            print(f"\n{name} {kind}: {reason}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.peers", description=__doc__)
    parser.add_argument(
        "--engines", type=one_of("engine", ALL_ENGINES), help=f"of {', '.join(ALL_ENGINES)}"
    )
    parser.add_argument(
        "--workloads", type=one_of("workload", ALL_WORKLOADS), help=f"of {', '.join(ALL_WORKLOADS)}"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each engine (3)")
    parser.add_argument(
        "--model", default="smollm2-135m", help="a GGUF in Q4_1, or an alias of one"
    )
    parser.add_argument("--larger-model", help="a GGUF for the larger_* workloads")
    parser.add_argument(
        "--source", type=Path, default=SOURCE, help="pellucid's src, built in place"
    )
    parser.add_argument("--quick", action="store_true", help="one short round; writes no file")
    parser.add_argument("--install-only", action="store_true")
    parser.add_argument("--report-only", action="store_true", help="tables and picture once more")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds: must be at least 1")
    if options.quick:
        options.rounds = 1
    options.engines = options.engines or list(ALL_ENGINES)
    options.workloads = options.workloads or list(QUICK if options.quick else ALL_WORKLOADS)
    return options


def one_of(kind: str, known: Iterable[str]) -> Callable[[str], list[str]]:
    """A parser of comma-separated names."""

    def split(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"no {kind} {name!r}; there are {', '.join(known)}"
                )
        return names

    return split


if __name__ == "__main__":
    main()
