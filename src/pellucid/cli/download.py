"""Fetching a model with something to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pellucid.config import ModelSettings

if TYPE_CHECKING:
    from pellucid.load.files import ModelFiles


def fetch(settings: ModelSettings) -> ModelFiles:
    """The model's files, downloaded first if need be, with a progress bar on stderr.

    Raises:
        ModelError: there is no such model, or it cannot be had.
    """
    from pellucid.load.hub import resolve

    return resolve(settings)
