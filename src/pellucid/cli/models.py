"""`pellucid pull` and `pellucid models`."""

from __future__ import annotations

from typing import Annotated

import typer

from pellucid.cli.options import configured
from pellucid.config import ModelSettings


@configured(only=("model", "cache_dir", "offline"))
def pull(settings: ModelSettings) -> None:
    """Download a model, or make sure that it is here; prints where."""
    from pellucid.cli.download import fetch

    print(fetch(settings).path)


@configured(only=("cache_dir",))
def models(
    settings: ModelSettings,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the models that have a short name, and which of them are here."""
