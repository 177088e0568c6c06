"""Shares of a model: put together again they are the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import ConfigError, ModelError
from pellucid.kernels.ranks import rows_of_rank
from pellucid.load.quantized import quantized
from pellucid.load.sharded import ShardedWeights, columns_of, rows_of, shard, shard_config
from pellucid.load.weights import Weights
from pellucid.models.config import ModelConfig
from pellucid.models.shapes import weight_shapes
from pellucid.quant.gguf_integers import unpack
from pellucid.quant.rounding import join
from pellucid.quant.types import RawQuant
from tests.quant.test_gguf_integers import EXACT, random_blocks

# The dimension along which Megatron-LM (Shoeybi et al. 2019) cuts each kind of layer.
CUT_ALONG = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "gate_proj": 0, "up_proj": 0}
CUT_ALONG |= {"embed_tokens": 0, "wte": 0, "lm_head": 0, "o_proj": 1, "down_proj": 1}


def config_of(**settings: Any) -> ModelConfig:
    shape = {"vocab_size": 40, "hidden_size": 64, "num_layers": 2, "num_heads": 8}
    shape |= {"num_kv_heads": 4, "head_dim": 8, "intermediate_size": 64, "max_position": 32}
    return ModelConfig(**{"architecture": "llama", **shape, **settings})


class Numbered(Weights):
    """No two elements of a matrix are equal."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(weight_shapes(config))

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        shape = self.shape(name)
        return torch.arange(1.0, 1.0 + np.prod(shape), dtype=dtype).view(shape)

    def close(self) -> None:
        pass


@st.composite
def models(draw: st.DrawFn) -> tuple[ModelConfig, int]:
    """A model and a number of ranks that it can be divided among."""
    size = draw(st.integers(1, 6))
    kv_heads = draw(st.sampled_from([n for n in range(1, 13) if n % size == 0 or size % n == 0]))
    per_kv = [n for n in range(1, 7) if n * kv_heads % size == 0]
    return config_of(
        architecture=draw(st.sampled_from(["llama", "gpt2"])),
        vocab_size=draw(st.integers(size, 60)),
        num_kv_heads=kv_heads,
        num_heads=kv_heads * draw(st.sampled_from(per_kv)),
        head_dim=draw(st.sampled_from([2, 4, 6])),
        intermediate_size=32 * size * draw(st.integers(1, 3)),
        tie_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        attention_out_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    ), size


@settings(max_examples=40, deadline=None)
@given(models())
def test_shares_put_together_are_the_whole(model: tuple[ModelConfig, int]) -> None:
    config, size = model
    whole = Numbered(config)
    shares = [ShardedWeights(whole, config, rank, size) for rank in range(size)]
    own = shard_config(config, size)
    for name in whole.names():
        parts = [share.get(name) for share in shares]
        assert [tuple(p.shape) for p in parts] == [share.shape(name) for share in shares]
        layer = name.split(".")[-2]
        if layer not in ("embed_tokens", "wte", "lm_head"):
            assert {tuple(p.shape) for p in parts} == {weight_shapes(own)[name]}
        if layer in ("k_proj", "v_proj"):  # several hold the same where there are too few
            parts = parts[:: max(1, size // config.num_kv_heads)]
        if name.endswith(("o_proj.bias", "down_proj.bias")):
            found = torch.stack(parts).sum(0)
        elif layer in CUT_ALONG:
            found = torch.cat(parts, dim=CUT_ALONG[layer])
        else:
            assert all(torch.equal(part, parts[0]) for part in parts)
            found = parts[0]
        assert torch.equal(found, whole.get(name)), name


@settings(max_examples=10, deadline=None)
@given(models())
def test_each_rank_has_the_key_head_of_each_of_its_query_heads(
    model: tuple[ModelConfig, int],
) -> None:
    config, size = model
    group = config.num_heads // config.num_kv_heads
    name, width = "model.layers.1.self_attn.k_proj.weight", config.head_dim
    if config.architecture == "gpt2":
        name = "transformer.h.1.attn.k_proj.weight"
    whole = Numbered(config)
    keys = whole.get(name).split(width)
    own = shard_config(config, size)
    for rank in range(size):
        mine = ShardedWeights(whole, config, rank, size).get(name).split(width)
        for head in range(own.num_heads):
            expected = keys[(rank * own.num_heads + head) // group]
            assert torch.equal(mine[head // (own.num_heads // own.num_kv_heads)], expected)


@pytest.mark.parametrize("size", [2, 3])
def test_rounded_weights_are_those_of_the_whole(size: int) -> None:
    config = config_of(num_heads=12, num_kv_heads=6, head_dim=16, intermediate_size=192)
    for scheme in ("int8", "int4"):
        whole = quantized(Numbered(config), scheme)
        shares = [ShardedWeights(whole, config, rank, size) for rank in range(size)]
        for name in ("self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"):
            name = f"model.layers.0.{name}.weight"
            parts = [torch.from_numpy(join(share.integers(name))) for share in shares]
            for share, part in zip(shares, parts, strict=True):
                assert torch.equal(share.get(name), part)
            found = torch.cat(parts, dim=CUT_ALONG[name.split(".")[-2]])
            assert torch.equal(found, whole.get(name))


@pytest.mark.parametrize("kind", EXACT)
def test_cut_formats_mean_the_same_numbers(kind: str) -> None:
    shape = (50, 1536)
    raw = RawQuant(kind, shape, random_blocks(kind, *shape))
    expected = np.concatenate([chunk.dense() for chunk in unpack(raw)])
    for columns in (slice(0, 768), slice(768, 1536), slice(1280, 1536), slice(96, 352)):
        for rows in (slice(0, 50), slice(7, 31)):
            found = columns_of(rows_of(unpack(raw), rows), columns)
            assert np.array_equal(found.dense(), expected[rows, columns])
            is_whole = columns.start % 256 == 0 and columns.stop % 256 == 0
            if "_K" in kind:
                assert (found.super_scales is not None) == is_whole


def test_rows_come_from_several_chunks() -> None:
    shape = (4000, 1024)
    raw = RawQuant("Q8_0", shape, random_blocks("Q8_0", *shape))
    chunks = list(unpack(raw))
    assert len(chunks) > 1
    rows = slice(len(chunks[0].q) - 5, len(chunks[0].q) + 9)
    expected = np.concatenate([chunk.dense() for chunk in chunks])[rows]
    assert np.array_equal(rows_of(iter(chunks), rows).dense(), expected)


def test_who_would_tear_a_group_apart_is_told_which() -> None:
    config = config_of(intermediate_size=96)
    weights, _ = shard(quantized(Numbered(config), "int8"), config, 1, 2)
    with pytest.raises(ModelError, match=r"layers.0.mlp.down_proj.*rank 1 of 2.* 48 to 96.*32"):
        weights.integers("model.layers.0.mlp.down_proj.weight")


@pytest.mark.parametrize("size", [3, 5, 16])
def test_what_does_not_divide_is_named(size: int) -> None:
    with pytest.raises(ConfigError, match=f"8 attention heads.*among {size}") as caught:
        shard_config(config_of(), size)
    assert caught.value.param == "tensor_parallel_size"


def test_key_heads_and_columns_have_to_divide_as_well() -> None:
    with pytest.raises(ConfigError, match=r"6 key/value heads.*among 4"):
        shard_config(config_of(num_heads=12, num_kv_heads=6), 4)
    with pytest.raises(ConfigError, match=r"36 columns of the MLP.*among 8"):
        shard_config(config_of(intermediate_size=36), 8)
    assert shard_config(config_of(), 8).num_kv_heads == 1


def test_one_rank_has_everything() -> None:
    config = config_of()
    weights = Numbered(config)
    assert shard(weights, config, 0, 1) == (weights, config)


@given(st.integers(0, 1000), st.integers(1, 64))
def test_rows_of_the_vocabulary_are_divided_evenly(count: int, size: int) -> None:
    shares = [rows_of_rank(count, rank, size) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
