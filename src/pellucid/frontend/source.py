"""A model's files as a server needs to know them before it loads the model."""

from __future__ import annotations

from dataclasses import dataclass

from pellucid.config import ModelSettings
from pellucid.load.hub import resolve, root_of, size_on_disk


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from; nothing in it names a folder of this disk."""

    name: str  # under which it is served
    root: str  # alias, repository or file name
    size: int  # bytes of its files


def find_source(settings: ModelSettings) -> Source:
    """Look a model up, downloading it if need be: blocking. Raises ModelError."""
    files = resolve(settings)
    name = settings.served_model_name or files.name
    return Source(name, root_of(settings.model), size_on_disk(files.path))
