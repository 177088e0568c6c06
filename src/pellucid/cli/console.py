"""Where text goes: results to stdout, everything about them to stderr."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pellucid.bench.summary import Summary

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


@cache
def notes() -> Console:
    """For status, progress and remarks; stdout stays clean for pipes."""
    return Console(stderr=True, highlight=False)


def results(width: int | None = None) -> Console:
    """For lines of figures on stdout, which are not wrapped, and tables, narrow unless `width`."""
    return Console(highlight=False, soft_wrap=True, width=width)


def remark(text: str) -> None:
    """A line beside the matter, on stderr."""
    notes().print(text, style="dim", markup=False, soft_wrap=True)


def write_text(text: str) -> None:
    """A model's words to stdout at once; on a terminal without what could steer it."""
    if sys.stdout.isatty():
        text = _CONTROL.sub("", text)
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr; call the result with how much was done since the last call."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    off = not notes().is_terminal
    with Progress(*columns, console=notes(), transient=True, disable=off) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)


def add_summary(table: Table, name: str, summary: Summary | None) -> None:
    """A row of mean, p50, p95, p99; nothing for no samples."""
    if summary is not None:
        numbers = (summary.mean, summary.p50, summary.p95, summary.p99)
        table.add_row(name, *(f"{number:,.1f}" for number in numbers))


def summary_table(title: str) -> Table:
    """An empty table for `add_summary`."""
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("milliseconds")
    for name in ("mean", "p50", "p95", "p99"):
        table.add_column(name, justify="right")
    return table


def rate(value: float | None) -> str:
    """A rate with the digits that mean something; a dash for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"
