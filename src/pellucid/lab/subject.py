"""The model that experiments measure: a real one, or a tiny one of random weights."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pellucid.config import EngineConfig, ModelSettings
from pellucid.engine.core import EngineCore
from pellucid.errors import ConfigError
from pellucid.load.files import ModelFiles
from pellucid.models.config import ModelConfig

if TYPE_CHECKING:
    from pellucid.layers.loading import WeightSource

RANDOM = "random"
RANDOM_MODEL = ModelConfig(
    architecture="llama",
    vocab_size=512,
    hidden_size=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=256,
    max_position=2048,
    tie_embeddings=True,
)


@dataclass(frozen=True)
class Subject:
    """`files` is None for the random model, whose speed says nothing about real ones."""

    settings: ModelSettings
    files: ModelFiles | None
    shape: ModelConfig = RANDOM_MODEL  # of the random model

    @property
    def name(self) -> str:
        return "tiny random weights" if self.files is None else self.files.name

    @cached_property
    def config(self) -> ModelConfig:
        from pellucid.load.model_config import load_config

        return self.shape if self.files is None else load_config(self.files)

    def open_weights(self) -> WeightSource:
        """Its weights as the file has them."""
        from pellucid.load.weights import open_weights
        from pellucid.models.registry import random_weights

        if self.files is None:
            return random_weights(self.config)
        return open_weights(self.files, self.config)

    def engine(self, weights: WeightSource | None = None, **settings: object) -> EngineCore:
        """An engine in this process; the caller closes its `runner`.

        Args:
            weights: to be used instead of the file's.
            settings: of `EngineConfig`, by their names.

        Raises:
            ConfigError: the settings do not fit the machine or the model.
        """
        import torch

        from pellucid.kernels.dispatch import select_ops
        from pellucid.models.registry import build_model
        from pellucid.runner import device as device_api
        from pellucid.runner.torch_runner import TorchRunner

        config = EngineConfig.of(**{"model": self.settings.model, "device": "cpu", **settings})
        if weights is None and self.files is not None:
            runner = TorchRunner(config, self.files)
            return EngineCore(runner, config.cache, config.scheduler)
        device = torch.device("cpu")
        model = build_model(
            self.config,
            weights or self.open_weights(),
            select_ops(config.runner.kernels, device, self.config.head_dim),
            device_api.pick_dtype(config.model.dtype, device),
            device,
            config.model.max_model_len,
        )
        return EngineCore(TorchRunner(config, model=model), config.cache, config.scheduler)

    def prompt(self, length: int, seed: int) -> list[int]:
        """Token ids to begin with: a piece of pellucid's own prose, or random ids."""
        rng = np.random.default_rng(seed)
        if self.files is None:
            ids: list[int] = rng.integers(3, self.config.vocab_size, length).tolist()
            return ids
        if length > len(self._prose):
            raise ConfigError(f"a prompt of {length} tokens is more than there is text for")
        start = int(rng.integers(0, len(self._prose) - length + 1))
        return self._prose[start : start + length]

    @cached_property
    def _prose(self) -> list[int]:
        from pellucid.frontend.tokenizer import load_tokenizer

        if self.files is None:
            return []
        text = "\n\n".join(_docstrings())
        return load_tokenizer(self.files).encode(text, add_special_tokens=False)


def _docstrings() -> Iterator[str]:
    """Of all modules, classes and functions of this package, by name of the file."""
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""
