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
    from pellucid.models.base import Model
    from pellucid.runner.base import Runner

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

    @classmethod
    def of(cls, model: str) -> Subject:
        """The model of that name, downloaded first if need be; "random" is the tiny one.

        Raises:
            ModelError: there is no such model, or it cannot be had.
        """
        from pellucid.load.hub import resolve

        settings = ModelSettings(model=model)
        return cls(settings, None if model == RANDOM else resolve(settings))

    @property
    def name(self) -> str:
        return "tiny random weights" if self.files is None else self.files.name

    @cached_property
    def config(self) -> ModelConfig:
        from pellucid.load.model_config import load_config

        return self.shape if self.files is None else load_config(self.files)

    def check_plain_attention(self, experiment: str) -> None:
        """Raise ConfigError, for `experiment`, if the model's attention has windows or caps."""
        config = self.config
        windows = any(config.window(layer) for layer in range(config.num_layers))
        if windows or config.attention_softcap is not None:
            raise ConfigError(
                f"{experiment}: needs plain attention; this model's has windows or caps"
            )

    def open_weights(self) -> WeightSource:
        """Its weights as the file has them."""
        from pellucid.load.weights import open_weights
        from pellucid.models.registry import random_weights

        if self.files is None:
            return random_weights(self.config)
        return open_weights(self.files, self.config)

    def engine(
        self,
        weights: WeightSource | None = None,
        model: Model | None = None,
        **settings: object,
    ) -> EngineCore:
        """An engine in this process; the caller closes its `runner`.

        Args:
            weights: to be used instead of the file's.
            model: to be used instead of loading one, so that several engines can share it.
            settings: of `EngineConfig`, by their names. A step gives each sequence one token,
                unless they say otherwise.

        Raises:
            ConfigError: the settings do not fit the machine or the model.
        """
        from pellucid.runner.factory import create_runner
        from pellucid.runner.torch_runner import TorchRunner

        if self.files is not None:
            settings = {"model": str(self.files.path), **settings}
        config = EngineConfig.of(**{"device": "cpu", "speculative": "none", **settings})
        runner: Runner
        if config.runner.runner != "torch":
            if self.files is None:
                raise ConfigError(f"--runner {config.runner.runner} takes no random weights")
            runner = create_runner(config)
        elif model is None and weights is None and self.files is not None:
            runner = TorchRunner(config, self.files)
        else:
            runner = TorchRunner(config, model=model or self._build(config, weights))
        return EngineCore(runner, config.cache, config.scheduler)

    def reference(self, max_model_len: int) -> Model:
        """The model on the reference kernels, in the dtype that `--dtype auto` takes."""
        settings = {"kernels": "reference", "max_model_len": max_model_len, "device": "cpu"}
        return self._build(EngineConfig.of(**settings), None)

    def _build(self, config: EngineConfig, weights: WeightSource | None) -> Model:
        import torch

        from pellucid.kernels.dispatch import KernelsUnavailable, select_ops
        from pellucid.models.registry import build_model
        from pellucid.runner import device as device_api

        device = torch.device("cpu")
        try:
            ops = select_ops(config.runner.kernels, device, self.config.head_dim)
        except KernelsUnavailable as error:
            raise ConfigError(str(error), param="kernels") from None
        dtype = device_api.pick_dtype(config.model.dtype, device)
        source = weights or self.open_weights()
        return build_model(self.config, source, ops, dtype, device, config.model.max_model_len)

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
