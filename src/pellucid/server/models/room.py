"""How much memory a model takes, and how the budget is shared."""

from __future__ import annotations

import msgspec

from pellucid.config import GIB, MIB, CacheSettings, EngineConfig, HostingSettings
from pellucid.errors import ConfigError
from pellucid.frontend.source import Source
from pellucid.messages import EngineInfo

# Of an engine's process: interpreter, libraries, what loading leaves behind, buffers of a step. It
# grows with the vocabulary (270 to 800 MiB were seen); an engine on a CPU tells its own.
OVERHEAD_BYTES = 400 * MIB


def budget_of(hosting: HostingSettings) -> int | None:
    """Bytes that all loaded models may take; None for no limit."""
    return None if hosting.model_memory_gib is None else int(hosting.model_memory_gib * GIB)


def share_memory(
    engine: EngineConfig, source: Source, budget: int | None, num_models: int
) -> EngineConfig:
    """`engine` with a KV pool that leaves room for other models, unless its size was set.

    Without a budget the share of the free memory is divided evenly; with one it is the same share
    of what the budget leaves beside the model's own weights.

    Raises:
        ConfigError: the model does not fit into the budget even if it is alone.
    """
    cache = engine.cache
    if cache.num_kv_blocks is None and cache.kv_cache_memory_mib is None:
        if budget is None:
            fraction = cache.memory_fraction / num_models
            cache = msgspec.structs.replace(cache, memory_fraction=fraction)
        else:
            spare = max(0, budget - source.size - source.draft_size - OVERHEAD_BYTES)
            mib = max(1, int(spare * cache.memory_fraction) // MIB)
            cache = msgspec.structs.replace(cache, kv_cache_memory_mib=mib)
    if budget is not None and (need := estimated_bytes(cache, source)) > budget:
        raise ConfigError(
            f"model_memory_gib: {too_large(source.name, need, budget)}", param="model_memory_gib"
        )
    return msgspec.structs.replace(engine, cache=cache)


def estimated_bytes(cache: CacheSettings, source: Source) -> int:
    """What a model will take, before it was ever loaded.

    A pool that is set in blocks counts once their size is known.
    """
    pool = 0 if cache.num_kv_blocks is not None else (cache.kv_cache_memory_mib or 0) * MIB
    return source.size + source.draft_size + pool + OVERHEAD_BYTES


def taken_bytes(info: EngineInfo) -> int:
    """What a loaded model takes once its KV pool is full."""
    weights = info.weight_bytes + info.draft_weight_bytes
    return (info.process_bytes or weights + OVERHEAD_BYTES) + kv_bytes(info)


def kv_bytes(info: EngineInfo) -> int:
    return info.num_kv_blocks * info.kv_block_bytes


def too_large(name: str, need: int, budget: int) -> str:
    return (
        f"the model {name!r} needs about {need / GIB:.2f} GiB, "
        f"more than the {budget / GIB:g} GiB of --model-memory-gib"
    )
