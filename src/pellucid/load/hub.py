"""From the name of a model to its files on this disk."""

from __future__ import annotations

from pathlib import Path

from pellucid.config import ModelSettings
from pellucid.errors import ModelError
from pellucid.load.files import ModelFiles

__all__ = ["ModelFiles", "resolve"]


def resolve(settings: ModelSettings, progress: object = None) -> ModelFiles:
    """Find the model that the settings name.

    Raises:
        ModelError: there is no such model.
    """
    path = Path(settings.model).expanduser()
    if path.is_file():
        return ModelFiles("gguf", path, path.stem)
    if path.is_dir():
        return ModelFiles("hf", path, path.resolve().name)
    raise ModelError(f"no model {settings.model!r}: neither a file nor a folder", param="model")
