"""`pellucid lab`: run experiments and join what they find."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from pellucid.config import ModelSettings
from pellucid.errors import PellucidError

if TYPE_CHECKING:
    from pellucid.lab.result import Result

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Measure claims about inference on this machine.")

DEFAULT_MODEL = ModelSettings().model


@app.command("list")
def list_() -> None:
    """List the experiments and what they ask."""
    from rich.table import Table

    from pellucid.cli.console import results
    from pellucid.lab.experiment import find_experiments

    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    for experiment in find_experiments().values():
        table.add_row(experiment.name, experiment.question)
    results().print(table)


@app.command()
def run(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Experiments to run.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Run all of them.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes: under a minute each on two cores.")
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a setting of what is run, as the result's JSON names it; may be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for results, plots and the report.")
    ] = Path("lab-results"),
    model: Annotated[
        str,
        typer.Option(
            envvar="PELLUCID_MODEL",
            help="The model to measure; 'random' is a tiny one that needs no download.",
        ),
    ] = DEFAULT_MODEL,
    cache_dir: Annotated[
        str | None,
        typer.Option(
            envvar="PELLUCID_CACHE_DIR",
            help="Folder for downloaded models; ~/.cache/pellucid by default.",
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", envvar="PELLUCID_OFFLINE", help="Never touch the network.")
    ] = False,
) -> None:
    """Run experiments; each writes JSON, PNG and HTML, and the folder's report is made anew."""
    from pellucid.cli.console import results
    from pellucid.cli.download import fetch
    from pellucid.lab.draw import check_extra
    from pellucid.lab.experiment import Lab, choose, run_experiment, share_out
    from pellucid.lab.report import write_report, write_result
    from pellucid.lab.subject import RANDOM, Subject

    chosen = choose(names or [], every=every)
    # Refused before anything is measured, or downloaded.
    given = share_out(chosen, changes or [], every=every, quick=quick)
    check_extra()
    needed = model != RANDOM and any(one.needs_model for one in chosen)
    settings = ModelSettings(model=model, cache_dir=cache_dir, offline=offline)
    lab = Lab(Subject(settings, fetch(settings) if needed else None), _track)
    failed: dict[str, str] = {}
    for experiment in chosen:
        try:
            result = run_experiment(experiment, lab, quick=quick, changes=given[experiment.name])
        except Exception as error:
            if len(chosen) == 1:
                raise
            failed[experiment.name] = _note_failure(experiment.name, error)
            continue
        write_result(result, out)
        path = write_report(out)  # each time, so that there is one however the run ends
        _show(result)
    if len(failed) < len(chosen):
        results().print(f"[dim]report: {path}, {out / 'report.html'}[/]")
    if failed:
        reasons = "; ".join(f"{name} ({why})" for name, why in failed.items())
        raise PellucidError(f"{len(failed)} of {len(chosen)} experiments failed: {reasons}")


def _note_failure(name: str, error: Exception) -> str:
    """Tell of it on stderr while the others are still to run; returns why in one line."""
    import os
    import traceback

    from pellucid.cli import explain
    from pellucid.cli.console import remark

    if os.environ.get("PELLUCID_DEBUG"):
        traceback.print_exception(error)
    why = explain(error)
    remark(f"{name} failed: {why}")
    return why


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Folder that `lab run` wrote.")
    ] = Path("lab-results"),
) -> None:
    """Join the results of a folder to report.md and report.html."""
    from pellucid.lab.draw import check_extra
    from pellucid.lab.report import write_report

    check_extra()
    typer.echo(write_report(folder, redraw=True))


def _track(items: Sequence[T], label: str) -> Iterable[T]:
    """A bar on stderr."""
    from pellucid.cli.console import progress_bar

    with progress_bar(label, len(items)) as advance:
        for item in items:
            yield item
            advance(1)


def _show(result: Result) -> None:
    from rich.table import Table

    from pellucid.cli.console import results
    from pellucid.lab.report import law_table, shown

    out = results()
    out.print(f"\n[bold]{result.name}[/]  {result.question}")
    found = result.findings
    laws = [law_table(found.laws)] if found.laws else []
    for table in (*found.tables, *laws):
        drawn = Table(title=table.title, title_justify="left", box=None)
        for index, column in enumerate(table.columns):
            drawn.add_column(column, justify="right" if index else "left")
        for row in table.rows:
            drawn.add_row(*map(shown, row))
        results(width=160).print(drawn)
    out.print(" ".join(found.conclusion), markup=False)
    for note in found.notes:
        out.print(note, style="dim", markup=False)
