"""Fetching a model with something to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pellucid.config import EngineConfig, ModelSettings

if TYPE_CHECKING:
    from pellucid.load.files import ModelFiles


def fetch(settings: ModelSettings) -> ModelFiles:
    """The model's files, downloaded first if need be, with a progress bar on stderr.

    Raises:
        ModelError: there is no such model, or it cannot be had.
    """
    from pellucid.load.hub import resolve
    from pellucid.load.progress import DownloadBar

    with DownloadBar() as bar:
        return resolve(settings, bar)


def fetch_all(engine: EngineConfig) -> ModelFiles:
    """As `fetch`, with the draft model if there is one. Raises ConfigError, too."""
    draft = engine.draft()
    files = fetch(engine.model)
    if draft is not None:
        fetch(draft)
    return files


def refresh(settings: ModelSettings) -> ModelFiles:
    """As `fetch`, but asks the source for what is newer, too. Raises ModelError."""
    from pellucid.load.hub import pull
    from pellucid.load.progress import DownloadBar

    with DownloadBar() as bar:
        return pull(settings, bar)
