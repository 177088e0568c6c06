"""Models of the Hugging Face hub, or of a mirror named by HF_ENDPOINT.

Only what is read is downloaded: configs, tokenizer and safetensors, or one GGUF file. No pickle, no
Python file. Where the hub states a SHA-256, a file that was just downloaded is checked against it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from pellucid.errors import ModelError
from pellucid.load.aliases import HubRepo
from pellucid.load.download import file_sha256
from pellucid.load.fields import read_json
from pellucid.load.files import ModelFiles

T = TypeVar("T")

_SPEC = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(:(?P<file>[\w./ -]+))?")

_WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
)


def parse_spec(text: str) -> HubRepo:
    """`hf:org/name` or `hf:org/name:file.gguf`.

    Raises:
        ModelError: it is neither.
    """
    match = _SPEC.fullmatch(text)
    if match is None or ".." in text:
        raise ModelError(f"{text!r:.200} is not of the form hf:org/name[:file]", param="model")
    return HubRepo(match["repo"], match["file"])


def is_offline(setting: bool) -> bool:
    """Whether the network must be left alone, by our own setting or by the hub's variable."""
    return setting or os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def cached_files(source: HubRepo, cache: Path | None) -> ModelFiles | None:
    """The model as the hub's cache has it; None if anything is missing.

    Args:
        cache: folder of the hub's cache, None for the hub's own default.
    """
    if source.file is not None:
        path = _cached(source, source.file, cache)
        return ModelFiles("gguf", path, path.stem) if path else None
    config = _cached(source, "config.json", cache)
    if config is not None:
        return _as_folder(source, config) if _is_complete(config.parent) else None
    snapshots = _repo_cache(source, cache) / "snapshots"
    ggufs = list(snapshots.glob("*/*.gguf"))
    return ModelFiles("gguf", ggufs[0], ggufs[0].stem) if len(ggufs) == 1 else None


def fetch_files(source: HubRepo, cache: Path | None) -> ModelFiles:
    """Download a model, or what is missing of it. huggingface_hub draws its own progress bars.

    Raises:
        ModelError: no such repository or file, no access, no connection, or a wrong checksum.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    info = _asking(source, lambda: api.model_info(source.repo, files_metadata=True))
    checksums = {file.rfilename: _lfs_sha256(file) for file in info.siblings or ()}
    path = Path()
    for file in _choose(source, list(checksums)):
        path = _download(source, file, cache, checksums[file])
    if path.suffix == ".gguf":
        return ModelFiles("gguf", path, path.stem)
    return _as_folder(source, path)


def _download(source: HubRepo, file: str, cache: Path | None, sha256: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    had = _cached(source, file, cache)
    endpoint = os.environ.get("HF_ENDPOINT")
    path = Path(
        _asking(
            source,
            lambda: hf_hub_download(source.repo, file, cache_dir=cache, endpoint=endpoint),
        )
    )
    if path != had and sha256 is not None and file_sha256(path) != sha256:
        path.resolve().unlink()  # the cache holds content apart, and links to it
        path.unlink(missing_ok=True)
        raise ModelError(f"the checksum of {file} from {source} is wrong; it was not kept")
    return path


def _choose(source: HubRepo, files: list[str]) -> list[str]:
    """Which of a repository's files to download, config.json last.

    So a cached config.json says that the rest was downloaded, even after a break.
    """
    ggufs = sorted(file for file in files if file.endswith(".gguf"))
    if source.file is not None:
        if source.file not in files:
            raise ModelError(
                f"hf:{source.repo} has no file {source.file!r}{_listing(ggufs)}", param="model"
            )
        if source.file not in ggufs:
            raise ModelError(f"{source.file} is not a .gguf file", param="model")
        return [source.file]
    if "config.json" in files and any(_is_weight(file) for file in files):
        wanted = [file for file in files if any(fnmatch(file, name) for name in _WANTED)]
        return sorted(wanted, key=lambda file: file == "config.json")
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise ModelError(
            f"hf:{source.repo} has several models; name one as hf:{source.repo}:FILE"
            f"{_listing(ggufs)}",
            param="model",
        )
    raise ModelError(
        f"hf:{source.repo} has neither safetensors nor GGUF files (pickles are never loaded)",
        param="model",
    )


def _listing(files: list[str]) -> str:
    return f"; it has {', '.join(files[:32])}" if files else ""


def _is_weight(file: str) -> bool:
    return "/" not in file and file.startswith("model") and file.endswith(".safetensors")


def _is_complete(folder: Path) -> bool:
    """Whether a snapshot has all its weights, and a tokenizer."""
    index = folder / "model.safetensors.index.json"
    shards = {"model.safetensors"}
    if index.is_file() and isinstance(listed := read_json(index).get("weight_map"), dict):
        shards = set(map(str, listed.values()))
    has_weights = all((folder / shard).is_file() for shard in shards)
    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    return has_weights and any((folder / name).is_file() for name in names)


def _as_folder(source: HubRepo, config: Path) -> ModelFiles:
    return ModelFiles("hf", config.parent, source.repo.rpartition("/")[2])


def _cached(source: HubRepo, file: str, cache: Path | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.repo, file, cache_dir=cache)
    return Path(found) if isinstance(found, str) else None


def _repo_cache(source: HubRepo, cache: Path | None) -> Path:
    from huggingface_hub import constants

    root = Path(cache or constants.HF_HUB_CACHE)
    return root / f"models--{source.repo.replace('/', '--')}"


def _lfs_sha256(file: Any) -> str | None:
    lfs = file.lfs  # an object in newer versions, a dict in older ones
    if lfs is None:
        return None
    return lfs.get("sha256") if isinstance(lfs, dict) else str(lfs.sha256)


def _asking(source: HubRepo, ask: Callable[[], T]) -> T:
    """Call the hub; whatever goes wrong there becomes a ModelError."""
    from huggingface_hub import errors

    try:
        return ask()
    except errors.GatedRepoError:
        problem = "is gated: accept its terms on the hub, then log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        problem = "does not exist, or is private (then set HF_TOKEN)"
    except errors.EntryNotFoundError as error:
        problem = f"misses a file: {_first_line(error)}"
    except Exception as error:
        # Which exceptions mean a broken connection depends on the HTTP library of its version.
        problem = f"cannot be downloaded: {_first_line(error)}"
    raise ModelError(f"{source} {problem}", param="model") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
