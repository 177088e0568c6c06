"""A mixture of experts in place of an MLP (Shazeer et al. 2017; Mixtral, Jiang et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.kernels.interface import Experts
from pellucid.layers.loading import Loader
from pellucid.layers.mlp import GatedMLP
from pellucid.models.config import ModelConfig


class SparseMLP:
    """A router scores the experts; each token is worked on by the few that score highest.

    Qwen2-MoE has a shared expert besides, an MLP of all tokens, whose weight in the sum is the
    sigmoid of a score of its own: one more row of the router.
    """

    def __init__(self, loader: Loader, config: ModelConfig, name: str) -> None:
        self.ops = loader.ops
        hidden, count = config.hidden_size, config.num_experts
        scored, sizes = [f"{name}.gate.weight"], [count]
        self.shared: GatedMLP | None = None
        if config.shared_expert_size:
            self.shared = GatedMLP(
                loader, config, f"{name}.shared_expert", config.shared_expert_size
            )
            scored.append(f"{name}.shared_expert_gate.weight")
            sizes.append(1)
        # float32 whatever the model's dtype: a score that is off by little sends a token elsewhere.
        self.router = loader.matrix(scored, sizes, hidden, torch.float32)
        self.experts = load_experts(loader, config, f"{name}.experts")

    def __call__(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        scores = self.ops.logits(x, self.router)
        shared = None if self.shared is None else self.shared(x)
        return self.ops.experts(x, scores, self.experts, shared)


def load_experts(loader: Loader, config: ModelConfig, name: str) -> Experts:
    """The experts `name`.0, `name`.1 ..."""
    hidden, inner = config.hidden_size, config.expert_size

    def each(part: str, out: int, width: int) -> list[object]:
        experts = range(config.num_experts)
        return [loader.matrix([f"{name}.{e}.{part}.weight"], [out], width) for e in experts]

    return Experts(
        gate=each("gate_proj", inner, hidden),
        up=each("up_proj", inner, hidden),
        down=each("down_proj", hidden, inner),
        activation=config.activation,
        top_k=config.experts_per_token,
        normalise=config.normalise_experts,
    )
