"""Whether a soak was passed, and its table for the documentation."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.soak.outcome import ENDS, Book
from benchmarks.soak.traffic import GOOD
from benchmarks.soak.watch import Sample, growth, is_flat

DOCS = Path(__file__).parents[2] / "docs" / "gateway.md"
BEGIN, END = "<!-- soak -->", "<!-- end of soak -->"
MIB = 1 << 20
COUNTS = {  # and how many more there may be than before
    "num_children": 0,
    "frontend_fds": 0,
    "frontend_threads": 8,  # pools fill up to their size
    "frontend_tasks": 0,
    "engine_fds": 0,
    "engine_threads": 2,
}


@dataclass(frozen=True)
class Check:
    name: str
    holds: bool
    detail: str


def checks(
    book: Book,
    before: Sample,
    after: Sample,
    samples: list[Sample],
    recoveries: list[float | None],
    num_blind: int,
) -> list[Check]:
    """What has to hold.

    Args:
        before, after: the idle server.
        samples: the server under load, in between.
        recoveries: seconds until each engine that was killed was replaced; None if it was not.
        num_blind: looks at /metrics to which there was no answer.
    """
    failed = book.totals["FAILED"]
    held = (after.running, after.waiting, after.kv_usage, after.active_streams)
    engine = [s.engine_rss for s in samples if s.engine_pid == after.engine_pid and s.engine_rss]
    frontend = [s.frontend_rss for s in samples]
    # A machine that stands still shows here, and explains requests that took too long.
    gap = max((b.seconds - a.seconds for a, b in pairwise(samples)), default=0.0)
    found = [
        Check("every request ended as it should", not failed, f"{failed} did not"),
        Check("something was answered", book.totals["answered"] > 0, str(book.totals["answered"])),
        Check("nothing is held at the end", not any(held), f"running, waiting, KV, open: {held}"),
        Check(
            "/metrics always answered",
            not num_blind,
            f"{num_blind} times not; longest gap {gap:.1f} s",
        ),
        Check("every killed engine was replaced", None not in recoveries, f"seconds: {recoveries}"),
        Check("memory of the front end is flat", is_flat(frontend), _mib(frontend)),
        Check("memory of the last engine is flat", is_flat(engine), _mib(engine)),
    ]
    for name, more in COUNTS.items():
        old, new = getattr(before, name), getattr(after, name)
        holds = old is not None and new is not None and new <= old + more
        title = f"{name.removeprefix('num_').replace('_', ' ')} as before"
        found.append(Check(title, holds, f"{old} before, {new} after"))
    return found


def quiet_log(lines: list[str]) -> Check:
    """No bug has left its traceback in the server's log."""
    count = sum("Traceback" in line or "never retrieved" in line for line in lines)
    return Check("no traceback in the log", not count, f"{count} in {len(lines)} lines")


def _mib(series: list[int]) -> str:
    if not series:
        return "no samples"
    change, most = growth(series) / MIB, max(series) / MIB
    return f"{change:+.0f} MiB from second to last quarter, at most {most:.0f}"


def table(book: Book, minutes: float, found: list[Check]) -> str:
    """Markdown: how requests ended, and what was looked at. The result file has every kind."""
    grouped: dict[str, Counter[str]] = {}
    for kind, ends in book.ends.items():
        group = (
            f"{len(GOOD)} kinds of good ones"
            if kind in GOOD
            else "wrong"
            if kind.startswith("bad")
            else kind
        )
        grouped.setdefault(group, Counter()).update(ends)
    lines = [
        f"`python -m benchmarks soak --minutes {minutes:g}`: {book.totals.total():,} requests.",
        "",
        "| requests | " + " | ".join(ENDS) + " |",
        "|---" * (len(ENDS) + 1) + "|",
    ]
    for kind, ends in [*grouped.items(), ("all", book.totals)]:
        lines.append(f"| {kind} | " + " | ".join(f"{ends[end]:,}" for end in ENDS) + " |")
    lines += ["", "| check | holds | |", "|---|---|---|"]
    lines += [f"| {c.name} | {'yes' if c.holds else '**no**'} | {c.detail} |" for c in found]
    return "\n".join(lines)


def write_into_docs(text: str) -> None:
    """Replace what stands between the marks in docs/gateway.md."""
    page = DOCS.read_text()
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    DOCS.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", page))
