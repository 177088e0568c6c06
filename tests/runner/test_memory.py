"""The size of the KV pool and the context that fits into it."""

from __future__ import annotations

import pytest
import torch

from pellucid.config import CacheSettings
from pellucid.errors import ConfigError
from pellucid.kernels.interface import allocate_kv, kv_head_bytes
from pellucid.models.config import ModelConfig
from pellucid.runner.memory import (
    fit_model_len,
    gpu_step_bytes,
    kv_block_bytes,
    kv_pool_blocks,
    model_len_limit,
)

CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=100,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=128,
    max_position=1000,
)
MIB = 1 << 20


def test_a_block_holds_keys_and_values_of_all_layers():
    assert kv_block_bytes(CONFIG, block_size=8, head_bytes=64) == 3 * 2 * (8 * 2 * 16) * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_the_pool_takes_what_was_accounted_for(dtype):
    layers = allocate_kv(3, 5, 8, 2, 16, dtype, torch.device("cpu"))
    tensors = [t for kv in layers for t in (kv.k, kv.v, kv.k_scale, kv.v_scale) if t is not None]
    head_bytes = kv_head_bytes(16, dtype)
    assert sum(t.nbytes for t in tensors) == 5 * kv_block_bytes(CONFIG, 8, head_bytes)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_kv_blocks": 7, "kv_cache_memory_mib": 1}, 7),
        ({"kv_cache_memory_mib": 2, "memory_fraction": 0.9}, 2 * MIB // 1000),
        ({"memory_fraction": 0.25}, MIB // 1000),
        ({"memory_fraction": 1.0}, 4 * MIB // 1000),
    ],
)
def test_the_most_explicit_setting_decides(settings, expected):
    cache = CacheSettings(block_size=16, **settings)
    assert kv_pool_blocks(cache, 1000, 4 * MIB, max_num_seqs=64, max_model_len=8192) == expected


def test_no_more_blocks_than_requests_and_their_cache_can_use():
    cache = CacheSettings(block_size=16, memory_fraction=1.0)
    assert kv_pool_blocks(cache, 1000, 10**12, max_num_seqs=4, max_model_len=33) == 2 * 4 * 3
    assert kv_pool_blocks(cache, 1000, -5, max_num_seqs=4, max_model_len=33) == 0


def test_the_context_is_the_models_unless_less_is_asked_for():
    assert model_len_limit(CONFIG, None) == 1000
    assert model_len_limit(CONFIG, 10) == 10
    with pytest.raises(ConfigError, match=r"1001.*1000") as caught:
        model_len_limit(CONFIG, 1001)
    assert caught.value.param == "max_model_len"


def test_a_context_that_does_not_fit_shrinks_unless_it_was_asked_for():
    assert fit_model_len(1000, None, num_blocks=10, block_size=16) == 160
    assert fit_model_len(1000, None, num_blocks=100, block_size=16) == 1000
    assert fit_model_len(160, 160, num_blocks=10, block_size=16) == 160
    with pytest.raises(ConfigError, match=r"161.*160") as caught:
        fit_model_len(161, 161, num_blocks=10, block_size=16)
    assert caught.value.param == "max_model_len"
    with pytest.raises(ConfigError, match="no room"):
        fit_model_len(1000, None, num_blocks=0, block_size=16)


def test_a_gpus_steps_have_room_for_logits_and_attention() -> None:
    """By hand: 256 rows of 100 numbers of 32 bits, three times, and one workspace or five."""
    logits = 3 * 256 * CONFIG.vocab_size * 4
    assert gpu_step_bytes(CONFIG, 256, False) == logits + (128 << 20)
    assert gpu_step_bytes(CONFIG, 256, True) == logits + 5 * (128 << 20)
