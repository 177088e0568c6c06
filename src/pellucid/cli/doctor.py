"""`pellucid doctor`: what this machine has, what would be used, what is missing."""

from __future__ import annotations

from typing import Annotated

import typer

from pellucid.cli.options import configured
from pellucid.config import EngineConfig, ServerConfig


@configured()
def doctor(
    engine: EngineConfig,
    server: ServerConfig,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show this machine, the packages, kernels and memory, and what is missing."""
