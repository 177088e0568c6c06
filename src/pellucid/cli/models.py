"""`pellucid pull` and `pellucid models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.cli.options import configured
from pellucid.config import MIB, ModelSettings

if TYPE_CHECKING:
    from pellucid.load.hub import ListedModel


@configured(only=("model", "cache_dir", "offline"))
def pull(settings: ModelSettings) -> None:
    """Download a model, or what is missing or newer of it; prints where it lies."""
    from pellucid.cli.download import fetch, refresh

    files = fetch(settings) if settings.offline else refresh(settings)
    print(files.path)


@configured(only=("cache_dir",))
def models(
    settings: ModelSettings,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the models that have a short name, and which of them are here."""
    from pellucid.load.hub import list_models

    listed = list_models(settings)
    if json:
        import msgspec

        print(msgspec.json.encode(listed, enc_hook=str).decode())
    else:
        _show(listed)


def _show(listed: list[ListedModel]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("here", justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    table.add_column("about")
    for model in listed:
        size = "-" if model.size is None else f"{model.size / MIB:,.0f} MiB"
        table.add_row(model.name, size, model.source, model.about)
    out = Console(highlight=False)
    out.print(table)
    out.print(
        "\nAny .gguf file, Hugging Face folder or hf:org/name[:file] will do, too.",
        markup=False,
        style="dim",
    )
