"""The gated feed-forward network of the Llama family (Shazeer 2020, "GLU variants")."""

from __future__ import annotations

from torch import Tensor

from pellucid.layers.linear import Linear, SummedLinear
from pellucid.layers.loading import Loader
from pellucid.models.config import ModelConfig


class GatedMLP:
    """down(act(gate(x)) * up(x)), with gate and up stacked in one weight."""

    def __init__(
        self, loader: Loader, config: ModelConfig, name: str, inner_size: int | None = None
    ) -> None:
        hidden = config.hidden_size
        inner = config.intermediate_size if inner_size is None else inner_size
        names = [f"{name}.gate_proj", f"{name}.up_proj"]
        self.ops = loader.ops
        self.activation = config.activation
        self.gate_up = Linear.load(loader, names, [inner, inner], hidden, config.mlp_bias)
        self.down = SummedLinear.load(
            loader, [f"{name}.down_proj"], [hidden], inner, config.mlp_bias
        )

    def __call__(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self.down(self.ops.gated(self.gate_up(x), self.activation))
