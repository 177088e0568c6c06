"""What all models are: layers along a residual stream, and a head.

A token's vector x runs through the layers as a stream to which each part adds its update:

    x = embedding of the token
    for each layer:
        x += attention(norm(x))      mixes in what earlier tokens hold
        x += mlp(norm(x))            works on each token alone
    logits = head(norm(x))

An addition and the norm that follows it are one op, so in the code an update travels beside the
stream until the next norm adds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, KVLayer
from pellucid.kernels.reference import ReferenceOps
from pellucid.layers.adapters import Adapters
from pellucid.layers.embedding import LMHead
from pellucid.models.config import ModelConfig


class Norm(Protocol):
    """A norm that first adds what is to be added; see `layers.norm`."""

    def add(self, update: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]: ...


class Layer(Protocol):
    """One layer of a model; `window` is the sliding window of its attention."""

    window: int | None

    def __call__(
        self, update: Tensor, x: Tensor | None, inputs: AttentionInputs, kv: KVLayer
    ) -> tuple[Tensor, Tensor]:
        """[T, hidden] each: the stream `x`, and the `update` that it still lacks; in and out.

        None is the empty stream, before anything was added to it.
        """
        ...


class Model:
    """A causal language model over the paged KV cache.

    All that depends on the step's shape is in `plan`; `forward` is the same sequence of ops every
    time, which a backend may therefore record and replay.
    """

    config: ModelConfig
    ops: ReferenceOps
    layers: Sequence[Layer]
    final_norm: Norm
    lm_head: LMHead
    adapters: Adapters | None = None

    @property
    def expert_bytes(self) -> int:
        """What weights of experts take, all of them; 0 for a model without."""
        return 0

    def embed(self, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """The first update and the stream before it, [T, hidden] each; None if that is empty."""
        raise NotImplementedError

    def plan(self, inputs: AttentionInputs, kv: list[KVLayer]) -> None:
        """Prepare `inputs.plan`: all of the step that is decided on the host."""
        windows = [layer.window for layer in self.layers]
        inputs.plan = self.ops.plan_attention(inputs, kv[0], self.config.num_heads, windows)

    def forward(self, token_ids: Tensor, inputs: AttentionInputs, kv: list[KVLayer]) -> Tensor:
        """[T] int64 -> [T, hidden] after the final norm; fills this step's slots of `kv`.

        `kv` has one entry per layer. Plans the step first unless `inputs.plan` is there.
        """
        if inputs.plan is None:
            self.plan(inputs, kv)
        update, x = self.embed(token_ids, inputs.positions)
        for layer, cache in zip(self.layers, kv, strict=True):
            update, x = layer(update, x, inputs, cache)
        normed, _ = self.final_norm.add(update, x)
        return normed

    def adapted(self, groups: list[tuple[int, Tensor]]) -> AbstractContextManager[None]:
        """While this is open, `forward` is of a step whose rows have adapters; see `AdaptedRows`.

        Raises:
            RuntimeError: the model was built without room for adapters.
        """
        if self.adapters is None:
            raise RuntimeError("the model was built without adapters")
        return self.adapters.rows(groups)

    def logits(self, rows: Tensor) -> Tensor:
        """[n, hidden] -> [n, vocab] float32."""
        return self.lm_head(rows)
