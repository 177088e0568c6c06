"""The line between the harness and an engine's process: JSON objects, one per line.

    {"op": "load", ...}                       -> {"about": {...}}
    {"op": "generate", "prompts": [[id]], "output_len": n}
                                              -> {"tokens": [[id]], "times": [[seconds]]}
    {"op": "score", "windows": [[id]]}        -> {"logprobs": [[float]]}

`times` are those of each token, since the call began; `score` gives the log probability of every
token but the first of each window. An exception becomes {"error": text} and ends nothing.
Only the standard library is used: this file runs in every peer's environment.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any


def serve(driver: Any) -> None:
    """Answer each line of stdin by the driver's method of that name, until stdin ends."""
    # What an engine prints belongs to stderr: the line to the harness is a copy of stdout.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(driver, request.pop("op"))(**request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=channel, flush=True)
