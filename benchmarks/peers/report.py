"""The result file, which every run adds to, and the tables made from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.report import RESULTS
from pellucid.bench.machine import describe_machine, describe_versions
from pellucid.bench.summary import write_json

FILE = RESULTS / "peers.json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"
Report = dict[str, Any]
SECTIONS = ("engines", "unavailable", "failed", "in_process", "over_http", "fidelity")


def read(path: Path | None = None) -> Report:
    """What earlier runs on this kind of machine found; else an empty report.

    Figures of two machines must not stand in one table.
    """
    machine = describe_machine()
    empty: Report = {
        "command": "python -m benchmarks.peers",
        "machine": machine,
        "versions": describe_versions(),
        **{section: {} for section in SECTIONS},
    }
    path = path or FILE
    if not path.is_file():
        return empty
    earlier: Report = msgspec.json.decode(path.read_bytes())
    same = all(earlier["machine"][key] == machine[key] for key in ("cpu", "usable_cores"))
    return {**empty, **{section: earlier[section] for section in SECTIONS}} if same else empty


def merge(report: Report, section: str, key: str, entries: Mapping[str, Any]) -> None:
    """Put newer `entries` (by engine) under report[section][key], keeping the others."""
    report[section].setdefault(key, {}).update(entries)


def note_failure(report: Report, engine: str, where: str, reason: str) -> None:
    print(f"{engine} failed at {where}: {reason}", flush=True)
    report["failed"].setdefault(engine, {})[where] = reason


def write(report: Report, path: Path | None = None) -> None:
    path = path or FILE
    path.parent.mkdir(exist_ok=True)
    write_json(path, report)


def in_process_table(report: Report) -> str:
    """Markdown: tokens per second, and how many times as fast pellucid was in the same rounds."""
    workloads = list(report["in_process"])
    rows = [
        [label(report, engine)]
        + [_cell(report["in_process"][name].get(engine), name) for name in workloads]
        for engine in _engines(report["in_process"])
    ]
    return _markdown(["tokens/s", *(name.replace("_", " ") for name in workloads)], rows)


def http_table(report: Report) -> str:
    clients = sorted(report["over_http"], key=int)
    rows = []
    for server in _engines(report["over_http"]):
        row = [label(report, server)]
        for count in clients:
            entry = report["over_http"][count].get(server)
            if entry is None:
                row.append("")
                continue
            failed = f", {entry['failed']} of {entry['requests']} failed" if entry["failed"] else ""
            row.append(f"{_speed(entry)}; {entry['mean_ttft_ms']['median']:,.0f} ms{failed}")
        rows.append(row)
    return _markdown(["output tokens/s; TTFT", *(f"{n} clients" for n in clients)], rows)


def fidelity_table(report: Report) -> str:
    rows = []
    for name, entry in report["fidelity"].items():
        if not isinstance(entry, dict) or "exact" not in entry:
            continue
        off = entry.get("mean_logprob_distance")
        rows.append(
            [
                label(report, name),
                f"{entry['exact']} of {entry['prompts']}",
                f"{entry['mean_common_prefix']:.1f}",
                "" if off is None else f"{off:.3f}",
            ]
        )
    return _markdown(["", "equal answers", "common prefix", "log probabilities off by"], rows)


TABLES: dict[str, Callable[[Report], str]] = {
    "in_process": in_process_table,
    "over_http": http_table,
    "fidelity": fidelity_table,
}


def fill(report: Report, path: Path | None = None) -> None:
    """Put the tables into the document, between `<!-- peers: NAME -->` and `<!-- end -->`."""
    path = path or DOCUMENT
    text = path.read_text(encoding="utf-8")
    for section, table in TABLES.items():
        content = table(report) if report[section] else "Not measured yet."
        before, begin, rest = text.partition(f"<!-- peers: {section} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{begin}{content}\n{end}{after}" if end else text
    path.write_text(text, encoding="utf-8")


def label(report: Report, engine: str) -> str:
    about = report["engines"].get(engine, {})
    return str(about.get("label", engine))


def _engines(section: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for entries in section.values() for name in entries))


def _cell(entry: Mapping[str, Any] | None, workload: str) -> str:
    measure = "prefill" if "prefill" in workload else "decode"
    return _speed(entry[measure]) if entry and measure in entry else ""


def _speed(entry: Mapping[str, Any]) -> str:
    speed = f"{entry['tokens_per_s']['median']:,.0f}"
    ratio = entry.get("pellucid_times_as_fast")
    return f"{speed} ({ratio['median']:.2f}x)" if ratio else speed


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
