"""Prefill and decode speed of the default model by kernels and batch, and the sampler's share."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from benchmarks.report import save
from pellucid.bench.throughput import Workload, measure
from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.messages import AddRequest, pack_tokens
from pellucid.runner.factory import create_runner
from pellucid.sampling_params import SamplingParams

BATCHES = (1, 8, 32)
RUNS = 5
CASES: dict[str, dict[str, str]] = {
    "native": {"kernels": "native"},
    "reference bfloat16": {"kernels": "reference", "dtype": "bfloat16"},
    "reference float32": {"kernels": "reference", "dtype": "float32"},
}
# What a chat front end may send: every stage of the sampler is used.
MIXED = SamplingParams(
    max_tokens=64,
    temperature=0.8,
    top_p=0.95,
    top_k=50,
    repetition_penalty=1.1,
    frequency_penalty=0.2,
    seed=1,
    ignore_eos=True,
)
GREEDY = SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True)


def make_engine(settings: dict[str, str]) -> EngineCore:
    """Its steps give each sequence one token, unless the settings say otherwise."""
    config = EngineConfig.of(**{"speculative": "none", **settings}, max_num_seqs=32)
    return EngineCore(create_runner(config), config.cache, config.scheduler)


def sampler_share(engine: EngineCore, params: SamplingParams) -> dict[str, float]:
    """Median forward and sampling time of a decode step at 32 sequences, in milliseconds."""
    for index in range(32):
        engine.add(
            AddRequest(
                request_id=f"s{index}",
                prompt=pack_tokens([(37 * index + k) % 40_000 + 100 for k in range(64)]),
                sampling=params,
                arrival_time=time.monotonic(),
            )
        )
    forward, sample = [], []
    while engine.has_work:
        stats = engine.step().stats
        if stats.num_generated_tokens == 32 and not stats.num_prompt_tokens:
            forward.append(stats.forward_seconds)
            sample.append(stats.sample_seconds)
    middle = len(forward) // 2
    forward_ms, sample_ms = (1e3 * sorted(times)[middle] for times in (forward, sample))
    return {
        "forward_ms": forward_ms,
        "sample_ms": sample_ms,
        "share_of_step": sample_ms / (forward_ms + sample_ms),
    }


def median_run(engine: EngineCore, load: Workload) -> dict[str, Any]:
    """Of RUNS measurements the one with the median decode rate, and the median prefill rate."""
    runs = [measure(engine, load) for _ in range(RUNS)]
    runs.sort(key=lambda run: run.decode_tokens_per_s or 0)
    rates = sorted(run.prefill_tokens_per_s or 0 for run in runs)
    middle = RUNS // 2
    return {
        **msgspec.to_builtins(runs[middle]),
        "prefill_tokens_per_s": rates[middle],
        "decode_range": [runs[0].decode_tokens_per_s, runs[-1].decode_tokens_per_s],
        "prefill_range": [rates[0], rates[-1]],
    }


def main() -> None:
    results: dict[str, Any] = {}
    for name, settings in CASES.items():
        begin = time.perf_counter()
        engine = make_engine(settings)
        figures: dict[str, Any] = {"load_seconds": time.perf_counter() - begin}
        for batch in BATCHES:
            load = Workload(input_len=128, output_len=64, num_prompts=batch, batch_size=batch)
            done = figures[f"batch_{batch}"] = median_run(engine, load)
            print(
                f"{name:18} batch {batch:2}: prefill {done['prefill_tokens_per_s']:7.0f} tok/s, "
                f"decode {done['decode_tokens_per_s']:7.1f} tok/s"
            )
        figures["sampling_greedy"] = sampler_share(engine, GREEDY)
        figures["sampling_mixed"] = sampler_share(engine, MIXED)
        for sampling in ("sampling_greedy", "sampling_mixed"):
            share = figures[sampling]
            print(
                f"{name:18} {sampling}: {share['sample_ms']:.2f} ms of a "
                f"{share['forward_ms'] + share['sample_ms']:.1f} ms step "
                f"({share['share_of_step']:.1%})"
            )
        results[name] = figures
        engine.runner.close()
    save("engine_speed", results, input_len=128, output_len=64, batches=list(BATCHES), runs=RUNS)
