"""A model's files as a server needs to know them before it loads the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pellucid.config import ModelSettings
from pellucid.load.files import ModelFiles
from pellucid.load.hub import resolve, root_of, size_on_disk


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from; nothing in it names a folder of this disk."""

    name: str  # under which it is served
    root: str  # alias, repository or file name
    size: int  # bytes of its files
    format: str = ""  # gguf or safetensors
    weights: str = ""  # what most of a GGUF file is held in, as Q4_K
    draft_size: int = 0  # bytes of the files of its draft model


def find_source(settings: ModelSettings, draft: ModelSettings | None = None) -> Source:
    """Look a model and its draft model up, downloading them if need be: blocking.

    Raises ModelError.
    """
    files = resolve(settings)
    name = settings.served_model_name or files.name
    form, weights = "safetensors", ""
    if files.kind == "gguf":
        form, weights = "gguf", _most_used_type(files)
    size, draft_size = size_on_disk(files.path), 0
    if draft is not None:
        draft_size = size_on_disk(resolve(draft).path)
    return Source(name, root_of(settings.model), size, form, weights, draft_size)


def _most_used_type(files: ModelFiles) -> str:
    held: Counter[str] = Counter()
    for tensor in files.gguf.tensors.values():
        held[tensor.ggml_type] += tensor.raw.nbytes
    return max(held, key=held.__getitem__, default="")
