"""Results in a folder: written one by one, and joined to a report in Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import msgspec

from pellucid.errors import ConfigError
from pellucid.lab import draw
from pellucid.lab.result import FORMAT, Law, Result, Table

TITLE = "pellucid's lab"
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;display:block;overflow-x:auto;font-size:.85em}"
    "td,th{border:1px solid #ccc;padding:.2em .6em;text-align:right}"
    "td:first-child,th:first-child{text-align:left}"
)


def write_result(result: Result, folder: Path) -> None:
    """NAME.json, NAME.html and a PNG for each figure. Raises ConfigError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{result.name}.json").write_bytes(msgspec.json.encode(result) + b"\n")
        draw.write_bundle(folder)
        _draw(result, folder)
    except OSError as error:
        raise ConfigError(f"--out: cannot write to {folder}: {error.strerror}") from None


def _draw(result: Result, folder: Path) -> None:
    for figure in result.findings.figures:
        draw.write_png(figure, folder / f"{result.name}-{figure.name}.png")
    (folder / f"{result.name}.html").write_text(page([result]), encoding="utf-8")


def read_results(folder: Path) -> list[Result]:
    """All results of a folder, by name.

    Raises ConfigError if there are none, or a file is not one that this version writes.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = msgspec.json.decode(path.read_bytes(), type=Result)
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(f"{path} is no result of the lab: {error}") from None
        if result.format != FORMAT:
            raise ConfigError(f"{path} has format {result.format}; this version reads {FORMAT}")
        results.append(result)
    if not results:
        raise ConfigError(f"no results in {folder}; `pellucid lab run` writes them")
    return results


def write_report(folder: Path, *, redraw: bool = False) -> Path:
    """report.md and report.html of all results in the folder; returns the Markdown file.

    With `redraw` every result's own pictures and page are made anew, too, of the numbers it has.
    """
    results = read_results(folder)
    try:
        draw.write_bundle(folder)
        for result in results if redraw else ():
            _draw(result, folder)
        (folder / "report.html").write_text(page(results), encoding="utf-8")
        path = folder / "report.md"
        path.write_text(markdown(results), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from None
    return path


# ---- Markdown


def markdown(results: Sequence[Result]) -> str:
    """The report; pictures are those that `write_result` put beside it."""
    parts = [f"# {TITLE}", ""]
    for result in results:
        found = result.findings
        parts += [f"## {result.name}", "", f"**{result.question}**", ""]
        parts += [" ".join(found.conclusion), "", f"*Expected:* {result.hypothesis}", ""]
        parts += [f"*Method:* {result.method}", ""]
        parts += [line for table in found.tables for line in _markdown_table(table)]
        if found.laws:
            parts += _markdown_table(law_table(found.laws))
        for figure in found.figures:
            parts += [f"![{figure.title}]({result.name}-{figure.name}.png)", ""]
        parts += [line for note in found.notes for line in (f"- {note}",)]
        parts += ["", f"<sub>{origin(result)}</sub>", ""]
    return "\n".join(parts)


def _markdown_table(table: Table) -> list[str]:
    head = "| " + " | ".join(table.columns) + " |"
    rule = "|---" + "|---:" * (len(table.columns) - 1) + "|"
    rows = ["| " + " | ".join(map(shown, row)) + " |" for row in table.rows]
    return [f"{table.title}:", "", head, rule, *rows, ""]


def shown(value: str | float | None) -> str:
    """A cell with the digits that mean something; a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if value == round(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def law_table(laws: Sequence[Law]) -> Table:
    """Fitted laws as a table."""
    rows: list[list[str | float | None]] = [
        [law.name, f"{law.y} ~ ({law.x}) ^ {law.exponent:.2f}", law.r2, float(law.points)]
        for law in laws
    ]
    return Table("Fitted laws", ["of", "law", "R²", "points"], rows)


def origin(result: Result) -> str:
    """Where and how the numbers were measured, in one line."""
    machine = result.machine
    return (
        f"{result.size} run of {result.date}, {result.seconds:.0f} s; model: {result.model};"
        f" {machine.get('cpu')}, {machine.get('usable_cores')} cores;"
        f" pellucid {result.versions.get('pellucid')}, torch {result.versions.get('torch')};"
        f" `{result.command}`"
    )


# ---- HTML


def page(results: Sequence[Result]) -> str:
    """A page of interactive plots, which loads plotly from beside it."""
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(TITLE)}</title>',
        f'<style>{STYLE}</style><script src="{draw.BUNDLE}"></script><h1>{escape(TITLE)}</h1>',
    ]
    for result in results:
        found = result.findings
        parts.append(f"<h2>{escape(result.name)}</h2><p><b>{escape(result.question)}</b></p>")
        parts.append(f"<p>{escape(' '.join(found.conclusion))}</p>")
        parts.append(f"<p><i>Expected:</i> {escape(result.hypothesis)}</p>")
        parts.append(f"<p><i>Method:</i> {escape(result.method)}</p>")
        parts += map(_html_table, found.tables)
        if found.laws:
            parts.append(_html_table(law_table(found.laws)))
        parts += map(draw.html_part, found.figures)
        parts += [f"<p>{escape(note)}</p>" for note in found.notes]
        parts.append(f"<p><small>{escape(origin(result))}</small></p>")
    return "\n".join(parts)


def _html_table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = [row(table.columns, "th"), *(row([*map(shown, cells)], "td") for cells in table.rows)]
    return f"<p>{escape(table.title)}</p><table>{''.join(rows)}</table>"
