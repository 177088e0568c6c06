"""How large the KV pool is, and how long a context fits into it."""

from __future__ import annotations

import torch

from pellucid.config import MIB, CacheSettings
from pellucid.errors import ConfigError
from pellucid.kernels.interface import ATTENTION_WORKSPACE
from pellucid.models.config import ModelConfig

# Blocks beyond what all running requests can fill serve the prefix cache alone.
PREFIX_CACHE_SHARE = 2
# A bucket has a third more rows or twice the context of the one below: 1 + 3/4 + 9/16 + ...
GRAPH_WORKSPACES = 4


def kv_block_bytes(config: ModelConfig, block_size: int, head_bytes: int) -> int:
    """Bytes of one KV block over all layers, keys and values, where a head takes `head_bytes`."""
    return 2 * config.num_layers * block_size * config.num_kv_heads * head_bytes


def gpu_step_bytes(config: ModelConfig, max_num_seqs: int, with_graphs: bool) -> int:
    """What a GPU's steps may take beside the KV pool, at most, as far as it grows with settings.

    Logits, twice: as the model gave them and as they are sampled from; and as many integers, the
    counts that penalties need. The workspace of attention, and of graphs that are recorded one by
    one, each larger than the one before, several.
    """
    logits = max_num_seqs * config.vocab_size * torch.float32.itemsize
    return 3 * logits + ATTENTION_WORKSPACE * (1 + GRAPH_WORKSPACES * with_graphs)


def model_len_limit(config: ModelConfig, asked: int | None) -> int:
    """The context length to serve, before memory is considered.

    Raises:
        ConfigError: more was asked than the model's positions reach.
    """
    if asked is None:
        return config.max_position
    if asked > config.max_position:
        raise ConfigError(
            f"max_model_len {asked} is more than the model's limit of {config.max_position} tokens",
            param="max_model_len",
        )
    return asked


def kv_pool_blocks(
    settings: CacheSettings, block_bytes: int, available: int, max_num_seqs: int, max_model_len: int
) -> int:
    """Blocks of the pool: as set, or else as many as memory allows and requests can use."""
    if settings.num_kv_blocks is not None:
        return settings.num_kv_blocks
    if settings.kv_cache_memory_mib is not None:
        budget = settings.kv_cache_memory_mib * MIB
    else:
        budget = int(max(0, available) * settings.memory_fraction)
    useful = PREFIX_CACHE_SHARE * max_num_seqs * -(-max_model_len // settings.block_size)
    return min(budget // block_bytes, useful)


def fit_model_len(limit: int, asked: int | None, num_blocks: int, block_size: int) -> int:
    """The context length that a single request can fill; at most `limit`.

    Raises:
        ConfigError: not even one block fits, or not the length that was asked for.
    """
    capacity = num_blocks * block_size
    if num_blocks < 1:
        raise ConfigError("the KV cache has no room for a single block", param="memory_fraction")
    if asked is not None and capacity < limit:
        raise ConfigError(
            f"max_model_len {limit} does not fit into the KV cache, which holds {capacity} tokens;"
            " lower it, or raise num_kv_blocks, kv_cache_memory_mib or memory_fraction",
            param="max_model_len",
        )
    return min(limit, capacity)
