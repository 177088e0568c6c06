"""The typer application and its commands.

Only typer, rich and msgspec are imported before a command runs, so that `--help` and completion
answer at once. Each command imports what it needs in its own body.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from pellucid import __version__
from pellucid.cli import bench, chat, doctor, generate, lab, models, serve, xray

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Every setting is also an environment variable (--max-num-seqs is PELLUCID_MAX_NUM_SEQS)"
        " and a key of the YAML file given to --config; flags count most, then the environment."
    ),
)
app.command()(serve.serve)
app.command()(xray.xray)
app.command()(chat.chat)
app.command()(generate.generate)
app.command()(models.pull)
app.command()(models.models)
app.add_typer(bench.app, name="bench")
app.add_typer(lab.app, name="lab")
app.command()(doctor.doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pellucid {__version__}")
        raise typer.Exit


@app.callback()
def pellucid(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors; also PELLUCID_DEBUG=1.")
    ] = False,
) -> None:
    """An LLM inference engine and server you can see through."""
    if debug:
        os.environ["PELLUCID_DEBUG"] = "1"  # the engine process inherits it
