"""Percentiles, and the JSON file of a benchmark."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import msgspec
import numpy as np

from pellucid.errors import ConfigError

PERCENTILES = (50, 95, 99)


class Summary(msgspec.Struct, frozen=True):
    """A distribution in few numbers, in the unit of its samples; percentiles interpolate."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float


def summarize(samples: Iterable[float], scale: float = 1.0) -> Summary | None:
    """Summary of the samples times `scale`; None if there are none, since no number is honest."""
    values = np.fromiter(samples, dtype=np.float64) * scale
    if values.size == 0:
        return None
    p50, p95, p99 = np.percentile(values, PERCENTILES)
    return Summary(
        values.size, float(values.mean()), float(p50), float(p95), float(p99), float(values.max())
    )


def command_line() -> str:
    """How this process was started, to write beside the numbers.

    Of absolute paths only the last part: results are published, and the rest tells of the machine
    what nobody needs.
    """
    import shlex

    return shlex.join(["pellucid", *map(_without_folders, sys.argv[1:])])


def _without_folders(word: str) -> str:
    """`/a/b` and `--out=/a/b` with `b` alone."""
    for head, path in (("", word), (word.partition("=")[0] + "=", word.partition("=")[2])):
        if PurePath(path).is_absolute():
            return head + PurePath(path).name
    return word


def write_json(path: Path, report: Any) -> None:
    """Write a report, indented. Raises ConfigError if the file cannot be written."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    except OSError as error:
        raise ConfigError(f"--json: cannot write {path}: {error.strerror}") from None
