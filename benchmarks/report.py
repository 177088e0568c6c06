"""Result files: what was measured, where, with which versions and by which command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pellucid.bench.machine import describe_machine, describe_versions
from pellucid.bench.summary import write_json

RESULTS = Path(__file__).parent / "results"


def save(name: str, results: Any, command: str | None = None, **settings: Any) -> None:
    """Write benchmarks/results/NAME.json; `command` is NAME by default."""
    RESULTS.mkdir(exist_ok=True)
    write_json(
        RESULTS / f"{name}.json",
        {
            "command": f"python -m benchmarks {command or name}",
            "settings": settings,
            "results": results,
            "machine": describe_machine(),
            "versions": describe_versions(),
        },
    )
