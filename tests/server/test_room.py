"""Memory that a model is said to need before it was ever loaded."""

from __future__ import annotations

from pathlib import Path

from pellucid.config import GIB, MIB, EngineConfig, ModelSettings
from pellucid.frontend.source import Source, find_source
from pellucid.server.models.room import estimated_bytes, share_memory, taken_bytes
from tests.frontend.tiny import engine_info


def test_a_draft_model_counts(tmp_path: Path) -> None:
    config = EngineConfig.of(kv_cache_memory_mib=100)
    plain, drafted = Source("m", "m", GIB), Source("m", "m", GIB, draft_size=GIB)
    difference = estimated_bytes(config.cache, drafted) - estimated_bytes(config.cache, plain)
    assert difference == GIB
    pools = [
        share_memory(EngineConfig(), source, 8 * GIB, 1).cache.kv_cache_memory_mib or 0
        for source in (plain, drafted)
    ]
    fraction = EngineConfig().cache.memory_fraction
    assert abs(pools[0] - pools[1] - fraction * GIB / MIB) <= 1
    info = engine_info(weight_bytes=MIB, draft_weight_bytes=GIB)
    assert taken_bytes(info) - taken_bytes(engine_info(weight_bytes=MIB)) == GIB


def test_its_files_are_looked_up_with_the_models(tmp_path: Path) -> None:
    paths = []
    for name, size in (("large", 70), ("small", 30)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_bytes(b"{}" + b" " * (size - 2))
        paths.append(ModelSettings(model=str(folder)))
    source = find_source(*paths)
    assert (source.name, source.size, source.draft_size) == ("large", 70, 30)
    assert find_source(paths[0]).draft_size == 0
