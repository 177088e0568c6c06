"""Where a resolved model lies on this disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pellucid.load.gguf import GGUFFile, read_gguf


@dataclass(frozen=True)
class ModelFiles:
    """A model ready to be opened: one .gguf file, or a Hugging Face folder."""

    kind: Literal["gguf", "hf"]
    path: Path  # the file, or the folder
    name: str  # short, for display and as the API's default model name

    @cached_property
    def gguf(self) -> GGUFFile:
        """The parsed header of a .gguf file, read once for config, tokenizer and weights.

        Raises:
            ModelError: the file is damaged.
        """
        return read_gguf(self.path)
