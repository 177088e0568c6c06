"""The server held against its own OpenAPI document by made-up requests: see `api_cases.py`.

`pellucid serve --runner fake` answers, so that thousands of requests take seconds. Exits with 1 if
an answer is not what the document says.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.api_cases import fuzz
from benchmarks.report import save
from benchmarks.serving import serving


def main(*options: str) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks api_fuzz")
    parser.add_argument("--cases", type=int, default=2000, help="at least as many requests")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(options)
    # The policy under which the field `priority` means something.
    with serving("--runner", "fake", "--policy", "priority") as (_, port):
        report = fuzz(f"http://127.0.0.1:{port}", given.cases, given.seed)
    for operation, statuses in report.statuses.items():
        print(f"{operation:48} {', '.join(f'{n} x {s}' for s, n in sorted(statuses.items()))}")
    for problem, example in report.failures.items():
        print(f"FAILED {problem}\n{example}\n")
    print(f"{report.num_cases} cases, {report.num_events} events, {len(report.failures)} failures")
    save(
        "api_fuzz",
        {
            "cases": report.num_cases,
            "events": report.num_events,
            "statuses": report.statuses,
            "failures": report.failures,
        },
        cases=given.cases,
        seed=given.seed,
    )
    if report.failures:
        sys.exit(1)
