"""Any source's weights as floats, and as the integers that `--quantization` makes of floats."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.layers.loading import WeightSource
from pellucid.load.quantized import Scheme, quantized
from pellucid.load.weights import Weights
from pellucid.models.config import ModelConfig
from pellucid.models.shapes import weight_shapes


class FloatWeights(Weights):
    """`inner` without its integers: every matrix is dense."""

    def __init__(self, inner: WeightSource, config: ModelConfig) -> None:
        shapes = weight_shapes(config)
        super().__init__({name: shapes.get(name, ()) for name in inner.names()})
        self._inner = inner

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._inner.get(name, dtype)

    def close(self) -> None:
        """The source is closed by whoever opened it."""


def rounded(inner: WeightSource, config: ModelConfig, scheme: Scheme) -> Weights:
    """`inner` as floats, rounded to `scheme` as they are asked for."""
    return quantized(FloatWeights(inner, config), scheme)
