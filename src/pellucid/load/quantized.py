"""Weight-only quantisation while loading: matrices that a file keeps as floats become integers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from pellucid.kernels.interface import IntegerMatrix
from pellucid.load.weights import Weights
from pellucid.quant.gguf_integers import row_chunks
from pellucid.quant.rounding import can_round, join, round_matrix, round_tensor

# Rows of these are looked up, or scored against each other: an error here meets no later layer
# that could average it out.
AT_LEAST_8_BITS = ("embed_tokens.weight", "wte.weight", "lm_head.weight")
# A router's scores decide between experts: what is rounded there sends tokens elsewhere.
_KEPT = ("wpe.weight", "mlp.gate.weight", "mlp.shared_expert_gate.weight")


Scheme = Literal["none", "int8", "int4"]


def quantized(weights: Weights, scheme: Scheme, device: torch.device | None = None) -> Weights:
    """`weights`, rounded to `scheme` as they are asked for; by `device`, or else by numpy."""
    return weights if scheme == "none" else QuantizedWeights(weights, scheme, device)


def at_most_4_bits(weights: Weights) -> Weights:
    """`weights` as a draft model needs them, whose guesses are checked: small above all.

    Matrices that their file keeps in more than 4 bits are rounded to 4, quantised or not.
    """
    return QuantizedWeights(weights, "int4", once_more=True)


class QuantizedWeights(Weights):
    """`inner` with its float matrices rounded to `scheme`; quantised ones stay as they are.

    They are rounded `once_more` if they have more bits than that, but for the embedding and the
    head. With int4 the embedding and the head take 8 bits. Whatever kernels run see the same
    numbers: `get` gives the rounded values.
    """

    def __init__(
        self,
        inner: Weights,
        scheme: Literal["int8", "int4"],
        device: torch.device | None = None,
        *,
        once_more: bool = False,
    ) -> None:
        super().__init__({name: inner.shape(name) for name in inner.names()})
        self._inner = inner
        self._bits = 8 if scheme == "int8" else 4
        self._device = device
        self._once_more = once_more

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        if not self._is_rounded(name):
            return self._inner.get(name, dtype)
        return torch.from_numpy(join(self._round(name))).to(dtype)

    def integers(self, name: str) -> Iterator[IntegerMatrix] | None:
        return self._round(name) if self._is_rounded(name) else self._inner.integers(name)

    def close(self) -> None:
        self._inner.close()

    def _is_rounded(self, name: str) -> bool:
        is_matrix = can_round(self.shape(name)) and not name.endswith(_KEPT)
        if not is_matrix or (parts := self._inner.integers(name)) is None:
            return is_matrix
        may_lose = self._once_more and not name.endswith(AT_LEAST_8_BITS)
        return may_lose and next(parts).bits > self._bits

    def _round(self, name: str) -> Iterator[IntegerMatrix]:
        rows, columns = self.shape(name)
        dense = self._inner.get(name)
        bits = 8 if name.endswith(AT_LEAST_8_BITS) else self._bits
        if self._device is not None:
            parts = (dense[chunk].to(self._device) for chunk in row_chunks((rows, columns)))
            return (round_tensor(part, bits) for part in parts)
        numbers = dense.cpu().numpy()
        return round_matrix(lambda chunk: numbers[chunk], (rows, columns), bits)
