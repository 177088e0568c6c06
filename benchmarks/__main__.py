"""`python -m benchmarks [NAME ... [OPTION ...]]`: run the named benchmarks, or all that measure.

Each writes its result file; options go to the one that is named.
"""

from __future__ import annotations

import sys
from importlib import import_module
from itertools import takewhile

NAMES = (
    "scheduler_step",
    "step_overhead",
    "recording_cost",
    "front_end",
    "token_budget",
    "engine_speed",
    "experts",
    "prefix_ttft",
    "speculation",
    "lora",
    "fidelity",
    "cost",
    "grammar_mask",
    "structured_output",
    "picture",
)
WITH_OPTIONS = ("speculation",)
# They do not measure, and run only if named: the first two pass or fail, the others photograph.
TRIALS = ("api_fuzz", "soak", "page_pictures", "replay_picture")


def main() -> None:
    arguments = sys.argv[1:]
    named = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    options = arguments[len(named) :]
    for name in named:
        if name not in NAMES + TRIALS:
            sys.exit(f"unknown benchmark {name!r}; there are {', '.join(NAMES + TRIALS)}")
    if options and not (len(named) == 1 and named[0] in TRIALS + WITH_OPTIONS):
        having = ", ".join(TRIALS + WITH_OPTIONS)
        sys.exit(f"{options[0]}: only {having}, named alone, have options")
    for name in named or NAMES:
        print(f"-- {name}")
        import_module(f"benchmarks.{name}").main(*options)


main()
