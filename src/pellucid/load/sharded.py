"""A rank's share of a model: rows or columns of each weight (docs/tensor-parallel.md).

    rows      q, k and v by heads, gate and up, embedding and head by ids of the vocabulary
    columns   o and down, whose products are parts of a sum
    whole     norms, positions; biases of o and down on rank 0 alone, or the sum would have several

A rank's model is therefore an ordinary one with fewer heads and a narrower MLP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.errors import ConfigError, ModelError
from pellucid.kernels.interface import IntegerMatrix
from pellucid.kernels.ranks import rows_of_rank
from pellucid.load.weights import Weights
from pellucid.models.config import ModelConfig

SUPER = 256  # columns that share a super scale
ARRAYS = ("q", "scales", "minima", "super_scales", "super_minima")  # of an IntegerMatrix

KEYS_AND_VALUES = ("k_proj", "v_proj")
BY_ROWS = ("q_proj", "gate_proj", "up_proj")
BY_COLUMNS = ("o_proj", "down_proj")
OF_THE_VOCABULARY = ("embed_tokens", "wte", "lm_head")


def shard_config(config: ModelConfig, size: int) -> ModelConfig:
    """The shape of what each of `size` ranks computes. Only the vocabulary is that of the whole.

    Key/value heads that are fewer than the ranks are repeated: each is held by several of them.

    Raises:
        ConfigError: the model does not divide so.
    """
    if config.num_experts and size > 1:
        raise ConfigError(
            "tensor_parallel_size: a mixture of experts cannot be divided yet",
            param="tensor_parallel_size",
        )
    kv_heads = config.num_kv_heads
    counts = {
        "attention heads": config.num_heads,
        "key/value heads": kv_heads,
        "columns of the MLP": config.intermediate_size,
    }
    for what, count in counts.items():
        is_repeated = what == "key/value heads" and size % count == 0
        if count % size and not is_repeated:
            raise ConfigError(
                f"tensor_parallel_size: the model's {count} {what} cannot be divided among {size}",
                param="tensor_parallel_size",
            )
    return replace(
        config,
        num_heads=config.num_heads // size,
        num_kv_heads=max(1, kv_heads // size),
        intermediate_size=config.intermediate_size // size,
    )


def shard(
    weights: Weights, config: ModelConfig, rank: int, size: int
) -> tuple[Weights, ModelConfig]:
    """What `rank` loads of the weights, and the shape that it has. See `shard_config`."""
    if size == 1:
        return weights, config
    return ShardedWeights(weights, config, rank, size), shard_config(config, size)


class ShardedWeights(Weights):
    """One rank's slices of `inner`, under the same names."""

    def __init__(self, inner: Weights, config: ModelConfig, rank: int, size: int) -> None:
        self._inner = inner
        self._num_kv_heads = config.num_kv_heads
        self._rank = rank
        self._size = size
        self._slices = {name: self._slice(name) for name in inner.names()}
        super().__init__(
            {name: tuple(s.stop - s.start for s in cut) for name, cut in self._slices.items()}
        )

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        if self._is_added_elsewhere(name):
            return torch.zeros(self.shape(name), dtype=dtype)
        whole = self._inner.get(name, dtype)
        return whole[self._slices[name]].clone(memory_format=torch.contiguous_format)

    def integers(self, name: str) -> Iterator[IntegerMatrix] | None:
        chunks = self._inner.integers(name)
        if chunks is None:
            return None
        rows, columns = self._slices[name]
        try:
            return iter([columns_of(rows_of(chunks, rows), columns)])
        except ValueError as error:
            raise ModelError(f"{name}: rank {self._rank} of {self._size}: {error}") from None

    def close(self) -> None:
        self._inner.close()

    def _slice(self, name: str) -> tuple[slice, ...]:
        shape = self._inner.shape(name)
        first, *rest = (slice(0, count) for count in shape)
        *_, layer, kind = name.split(".")
        rank, size = self._rank, self._size
        if layer in OF_THE_VOCABULARY:
            rows = rows_of_rank(shape[0], rank, size)
            first = slice(rows.start, rows.stop)
        elif layer in KEYS_AND_VALUES and self._num_kv_heads < size:
            first = _share(shape[0], rank * self._num_kv_heads // size, self._num_kv_heads)
        elif layer in (*BY_ROWS, *KEYS_AND_VALUES):
            first = _share(shape[0], rank, size)
        elif layer in BY_COLUMNS and kind == "weight":
            rest = [_share(shape[1], rank, size)]
        return first, *rest

    def _is_added_elsewhere(self, name: str) -> bool:
        return self._rank > 0 and name.endswith(tuple(f"{layer}.bias" for layer in BY_COLUMNS))


def _share(count: int, rank: int, size: int) -> slice:
    return slice(count // size * rank, count // size * (rank + 1))


def rows_of(chunks: Iterable[IntegerMatrix], rows: slice) -> IntegerMatrix:
    """Some rows of a matrix that comes in chunks of rows, as one chunk."""
    found: list[IntegerMatrix] = []
    begin = 0
    for chunk in chunks:
        count, width = chunk.q.shape
        own = slice(max(rows.start - begin, 0), min(rows.stop - begin, count))
        if own.start < own.stop:
            found.append(_cut(chunk, own, range(width)))
        begin += count
    arrays: dict[str, Any] = {name: _stacked(found, name) for name in ARRAYS}
    return replace(found[0], **arrays)


def columns_of(matrix: IntegerMatrix, columns: slice) -> IntegerMatrix:
    """Some columns of a matrix; if a super group is cut, super scales are multiplied out.

    Raises:
        ValueError: columns that share a scale would be torn apart.
    """
    wanted = range(columns.start, columns.stop)
    if wanted.start % matrix.group or wanted.stop % matrix.group:
        raise ValueError(
            f"columns {wanted.start} to {wanted.stop} are not whole groups of {matrix.group}, which"
            " share a scale"
        )
    if matrix.super_scales is not None and (wanted.start % SUPER or wanted.stop % SUPER):
        scales, minima = matrix.float_scales()
        matrix = replace(matrix, scales=scales, minima=minima, super_scales=None, super_minima=None)
    return _cut(matrix, slice(None), wanted)


def _cut(matrix: IntegerMatrix, rows: slice, columns: range) -> IntegerMatrix:
    """Columns from and to the edges of what shares a scale."""

    def part(name: str, width: int) -> NDArray[Any] | None:
        array = getattr(matrix, name)
        if array is None:
            return None
        return np.ascontiguousarray(array[rows, columns.start // width : columns.stop // width])

    widths = (1, matrix.group, matrix.group, SUPER, SUPER)
    arrays: dict[str, Any] = {n: part(n, w) for n, w in zip(ARRAYS, widths, strict=True)}
    return replace(matrix, **arrays)


def _stacked(parts: list[IntegerMatrix], name: str) -> NDArray[Any] | None:
    arrays = [getattr(part, name) for part in parts]
    return None if arrays[0] is None else np.concatenate(arrays)
