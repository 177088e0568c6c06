"""Decoding with a mixture of experts, beside what memory gives for the experts that are chosen.

Four layers of OLMoE-1B-7B with random weights in 4 bits, whose head is its embedding, so that each
step reads all that is there but for experts that nobody chose. Which are chosen is near chance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.report import save
from pellucid.bench.throughput import Workload, measure
from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.kernels.dispatch import select_ops
from pellucid.kernels.machine_limits import measure_limits
from pellucid.load.quantized import quantized
from pellucid.load.random import SHAPES, RepeatedNoise
from pellucid.models.registry import build_model
from pellucid.runner.torch_runner import TorchRunner

LAYERS = 4
BATCHES = (1, 8, 32)
RUNS = 5
THREADS = 2


def make_engine() -> EngineCore:
    shape = replace(SHAPES["olmoe-1b-7b"], num_layers=LAYERS, tie_embeddings=True)
    cpu, dtype = torch.device("cpu"), torch.bfloat16
    weights = quantized(RepeatedNoise(shape), "int4")
    model = build_model(shape, weights, select_ops("native", cpu), dtype, cpu)
    config = EngineConfig.of(
        kernels="native",
        threads=THREADS,
        max_num_seqs=32,
        num_kv_blocks=400,
        max_model_len=256,
        speculative="none",
    )
    return EngineCore(TorchRunner(config, model=model), config.cache, config.scheduler)


def decoded(engine: EngineCore, batch: int, memory: float) -> dict[str, float]:
    """The run with the median step: tokens and bytes of weights per second."""
    load = Workload(num_prompts=batch, batch_size=batch, input_len=8, output_len=64)
    steps = sorted(_median_step(measure(engine, load).decode_step_ms) for _ in range(RUNS))
    seconds = steps[RUNS // 2] / 1e3
    read = engine.info.bytes_read(batch)
    return {
        "tokens_per_s": batch / seconds,
        "step_ms": 1e3 * seconds,
        "fastest_ms": steps[0],
        "slowest_ms": steps[-1],
        "megabytes_read": read / 1e6,
        "share_of_memory": read / seconds / memory,
    }


def _median_step(summary: Any) -> float:
    median: float = summary.p50
    return median


def main() -> None:
    engine = make_engine()
    before = measure_limits(THREADS).memory
    info = engine.info
    found = {str(batch): decoded(engine, batch, before) for batch in BATCHES}
    after = measure_limits(THREADS).memory
    for batch, one in found.items():
        print(
            f"{batch:>2} sequences: {one['tokens_per_s']:7.1f} tokens/s,"
            f" {one['step_ms']:.2f} ms a step of {one['megabytes_read']:.0f} MB,"
            f" {one['share_of_memory']:.0%} of memory's limit"
        )
    print(f"memory: {before / 1e9:.1f} GB/s before, {after / 1e9:.1f} after")
    weights = {"bytes": info.weight_bytes, "of_experts": info.expert_weight_bytes}
    limits = {"memory_before": before, "memory_after": after}
    save("experts", {"batches": found, "weights": weights, "limits": limits}, layers=LAYERS)
