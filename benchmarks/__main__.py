"""`python -m benchmarks [NAME ...]`: run the named benchmarks, or all; write their result files."""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = (
    "scheduler_step",
    "step_overhead",
    "recording_cost",
    "front_end",
    "token_budget",
    "engine_speed",
    "prefix_ttft",
    "fidelity",
    "cost",
    "grammar_mask",
    "structured_output",
    "picture",
)


def main() -> None:
    chosen = sys.argv[1:] or NAMES
    for name in chosen:
        if name not in NAMES:
            sys.exit(f"unknown benchmark {name!r}; there are {', '.join(NAMES)}")
    for name in chosen:
        print(f"-- {name}")
        import_module(f"benchmarks.{name}").main()


main()
