"""Time to first token of a 1,000-token prompt, new and with its prefix cached, in pairs."""

from __future__ import annotations

import statistics
import time

from benchmarks.report import save
from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.messages import AddRequest, pack_tokens
from pellucid.runner.factory import create_runner
from pellucid.sampling_params import SamplingParams

PREFIX = 1000
PAIRS = 5


def ttft(engine: EngineCore, name: str, prompt: list[int]) -> tuple[float, int]:
    """Seconds to the first token, and how many prompt tokens came from the cache."""
    begin = time.perf_counter()
    engine.add(
        AddRequest(
            request_id=name,
            prompt=pack_tokens(prompt),
            sampling=SamplingParams(max_tokens=1, temperature=0.0),
            arrival_time=time.monotonic(),
        )
    )
    while True:
        for delta in engine.step().deltas:
            return time.perf_counter() - begin, delta.num_cached_tokens


def main() -> None:
    config = EngineConfig.of()
    engine = EngineCore(create_runner(config), config.cache, config.scheduler)
    pairs = []
    for pair in range(PAIRS):
        prefix = [(7919 * (pair + 1) + 31 * k) % 40_000 + 100 for k in range(PREFIX)]
        cold, none = ttft(engine, f"cold{pair}", [*prefix, 5, 6, 7])
        warm, cached = ttft(engine, f"warm{pair}", [*prefix, 8, 9, 10])
        pairs.append({"cold_ms": cold * 1e3, "warm_ms": warm * 1e3, "cached_tokens": cached})
        if none or not cached:
            raise SystemExit(f"pair {pair}: expected a miss then a hit, got {none} and {cached}")
    ratio = statistics.median(p["cold_ms"] / p["warm_ms"] for p in pairs)
    print(f"first token {ratio:.1f}x sooner when {pairs[0]['cached_tokens']} tokens are cached")
    save("prefix_ttft", {"pairs": pairs, "median_ratio": ratio}, prefix=PREFIX, pairs=PAIRS)
