"""What LoRA adapters add to a step: of one sequence, of 32, and of a prompt.

The default model on the native kernels, and random adapters of all its projections. In a round each
case is run once, so that all of them meet the machine as it is; times are medians over the steps of
a run, and ratios are of a round.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.engine_speed import make_engine
from benchmarks.report import save
from pellucid.engine.core import EngineCore
from pellucid.messages import AddRequest, LoadAdapter, pack_tokens
from pellucid.models.shapes import weight_shapes
from pellucid.sampling_params import SamplingParams

RANKS = (16, 64)
ADAPTERS = 8  # of each rank
BATCHES = (1, 32)
PROMPT, ANSWER = 64, 32  # tokens, of those that decode
LONG_PROMPT = 256  # a step's budget
ROUNDS = 3
PLAIN = "none"


def write_adapter(folder: Path, shapes: dict[str, tuple[int, ...]], rank: int, seed: int) -> Path:
    torch.manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("_proj.weight"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, shape[1]) * shape[1] ** -0.5
            tensors[f"{module}.lora_B.weight"] = torch.randn(shape[0], rank) * 0.01
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def load_adapters(engine: EngineCore) -> float:
    """Of each rank ADAPTERS, numbered one rank after the other; returns seconds per adapter."""
    runner: Any = engine.runner
    shapes = weight_shapes(runner._model.config)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(len(RANKS) * ADAPTERS):
            rank = RANKS[number // ADAPTERS]
            path = write_adapter(Path(folder) / str(number), shapes, rank, number)
            begin = time.perf_counter()
            engine.handle(LoadAdapter(adapter=number, name=str(number), path=str(path)))
            seconds.append(time.perf_counter() - begin)
            (outcome,) = engine.step().adapters
            assert outcome.error is None, outcome.error
    return statistics.median(seconds)


def cases(batch: int) -> dict[str, list[int | None]]:
    """By name, the adapter of each sequence."""
    found: dict[str, list[int | None]] = {PLAIN: [None] * batch}
    for place, rank in enumerate(RANKS):
        first = place * ADAPTERS
        found[f"rank {rank}"] = [first] * batch
        if batch > 1:
            found[f"rank {rank}, {ADAPTERS} adapters"] = [
                first + i % ADAPTERS for i in range(batch)
            ]
            found[f"rank {rank}, one sequence in {batch}"] = [first] + [None] * (batch - 1)
    return found


def add(engine: EngineCore, adapters: list[int | None], prompt: int, answer: int) -> None:
    for index, adapter in enumerate(adapters):
        engine.add(
            AddRequest(
                request_id=f"s{index}",
                prompt=pack_tokens([(37 * index + k) % 40_000 + 100 for k in range(prompt)]),
                sampling=SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True),
                arrival_time=time.monotonic(),
                adapter=adapter,
            )
        )


def decode_step(engine: EngineCore, adapters: list[int | None]) -> float:
    """Median milliseconds of the steps in which every sequence got a token."""
    add(engine, adapters, PROMPT, ANSWER)
    seconds = []
    while engine.has_work:
        begin = time.perf_counter()
        stats = engine.step().stats
        if stats.num_generated_tokens == len(adapters) and not stats.num_prompt_tokens:
            seconds.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(seconds)


def prompt_step(engine: EngineCore, adapter: int | None) -> float:
    """Milliseconds of a step that computes a prompt."""
    add(engine, [adapter], LONG_PROMPT, 1)
    begin = time.perf_counter()
    engine.step()
    seconds = time.perf_counter() - begin
    while engine.has_work:
        engine.step()
    return 1e3 * seconds


def measure(engine: EngineCore) -> dict[str, dict[str, float]]:
    works: dict[str, dict[str, Any]] = {
        f"decode, {batch} sequences": {
            name: lambda adapters=adapters: decode_step(engine, adapters)
            for name, adapters in cases(batch).items()
        }
        for batch in BATCHES
    }
    works[f"prompt of {LONG_PROMPT}"] = {
        name: lambda adapter=adapters[0]: statistics.median(
            prompt_step(engine, adapter) for _ in range(3)
        )
        for name, adapters in cases(1).items()
    }
    results: dict[str, dict[str, float]] = {}
    for work, runs in works.items():
        for run in runs.values():  # warm
            run()
        rounds = [{name: run() for name, run in runs.items()} for _ in range(ROUNDS)]
        for name in runs:
            results[f"{work}, {name}"] = {
                "ms": statistics.median(times[name] for times in rounds),
                "ratio": statistics.median(times[name] / times[PLAIN] for times in rounds),
            }
    return results


def main() -> None:
    engine = make_engine({"kernels": "native", "prefix_caching": "false"})
    seconds = load_adapters(engine)
    results = measure(engine)
    for name, result in results.items():
        print(f"{name:55} {result['ms']:7.2f} ms  {result['ratio']:.2f}")
    print(f"loading an adapter takes {1e3 * seconds:.0f} ms")
    settings = {"ranks": RANKS, "adapters": ADAPTERS, "rounds": ROUNDS, "prompt": PROMPT}
    save("lora", results, load_ms=1e3 * seconds, **settings)
