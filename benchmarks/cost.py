"""Step time against batch and context, prefill time against prompt length, beside what limits them.

The default model on the native kernels, steps given to the runner directly. The limit of a step is
the larger of two times: reading the weights once and every key and value that is attended to, at
the bandwidth measured in the same run; and computing its products at the measured int8 peak, its
attention at the float32 peak. Draws docs/pictures/cost.png.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import save
from pellucid.config import EngineConfig
from pellucid.kernels.machine_limits import Limits, measure_limits
from pellucid.models.config import ModelConfig
from pellucid.runner.base import Chunk, NewRow, StepPlan
from pellucid.runner.factory import create_runner
from pellucid.sampling_params import SamplingParams

TARGET = Path(__file__).parents[1] / "docs" / "pictures" / "cost.png"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
BATCH_CONTEXT = 256
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8000)
CONTEXT_BATCHES = (1, 8)
KV_TYPES = ("bfloat16", "int8")
PROMPTS = (16, 64, 128, 256, 512, 1024, 2048, 4096)
CHUNK = 256  # as the scheduler cuts prompts on a CPU
STEPS = 15  # decoded per point; the median counts
PREFILLS = 5
BLOCK_SIZE = 16
BLOCKS = max(CONTEXT_BATCHES) * 8192 // BLOCK_SIZE
GREEDY = SamplingParams(max_tokens=STEPS + 1, temperature=0.0, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Point:
    """Milliseconds of a step, or of a prompt's steps: measured, and what limits them."""

    x: int
    measured_ms: float
    memory_ms: float
    compute_ms: float

    @property
    def limit_ms(self) -> float:
        return max(self.memory_ms, self.compute_ms)


class Meter:
    """A runner whose KV pool is full of numbers, so that any context can be claimed."""

    def __init__(self, kv_type: str, limits: Limits) -> None:
        config = EngineConfig.of(
            kernels="native",
            kv_cache_dtype=kv_type,
            num_kv_blocks=BLOCKS,
            block_size=BLOCK_SIZE,
            max_num_seqs=max(BATCHES),
            speculative="none",
        )
        self._runner: Any = create_runner(config)
        self._limits = limits
        self._model: ModelConfig = self._runner._model.config
        self._info = self._runner.info()
        for layer in self._runner._kv:
            for part in (layer.k, layer.v):
                part.copy_((torch.randn(part.shape[1:]) * 9).to(part.dtype))
            for scales in (layer.k_scale, layer.v_scale):
                if scales is not None:
                    scales.fill_(0.1)

    def decode(self, x: int, batch: int, context: int) -> Point:
        """A step of `batch` sequences, each at about `context` tokens."""
        names, blocks = self._rows(batch, context), -(-(context + STEPS) // BLOCK_SIZE)
        tables = [list(range(i * blocks, (i + 1) * blocks)) for i in range(batch)]
        seconds = []
        for step in range(STEPS):
            chunks = [
                Chunk(name, context - 1 + step, 1, True, table if step == 0 else [])
                for name, table in zip(names, tables, strict=True)
            ]
            seconds.append(self._timed(chunks))
        self._drop(names)
        return self._point(x, statistics.median(seconds[1:]), batch, batch * context, batch, 1)

    def prefill(self, length: int) -> Point:
        """All steps of a prompt of `length` tokens."""
        seconds = []
        for _ in range(PREFILLS):
            names = self._rows(1, length)
            table, total = list(range(-(-length // BLOCK_SIZE))), 0.0
            for start in range(0, length, CHUNK):
                count = min(CHUNK, length - start)
                last = start + count == length
                total += self._timed([Chunk(names[0], start, count, last, table)])
                table = []
            seconds.append(total)
            self._drop(names)
        steps = -(-length // CHUNK)
        seen = length * (length + 1) // 2
        return self._point(length, statistics.median(seconds), length, seen, 1, steps)

    def close(self) -> None:
        self._runner.close()

    def _rows(self, count: int, length: int) -> list[str]:
        names = [f"r{index}" for index in range(count)]
        tokens = [(37 * k) % 40_000 + 100 for k in range(length)]
        rows = [NewRow(name, tokens, length, GREEDY) for name in names]
        self._runner.execute(StepPlan(step=0, new_rows=rows)).result()
        return names

    def _drop(self, names: list[str]) -> None:
        self._runner.execute(StepPlan(step=0, dropped=names)).result()

    def _timed(self, chunks: list[Chunk]) -> float:
        begin = time.perf_counter()
        self._runner.execute(StepPlan(step=0, chunks=chunks)).result()
        return time.perf_counter() - begin

    def _point(
        self, x: int, seconds: float, tokens: int, seen: int, sampled: int, steps: int
    ) -> Point:
        """`seen`: positions that the tokens attend to, all together."""
        model, limits = self._model, self._limits
        head = model.vocab_size * model.hidden_size
        inner = self._info.num_parameters - head  # the embedding is the head, and looked up
        position_bytes = self._info.kv_block_bytes // BLOCK_SIZE
        # A step of a prompt reads the keys and values before its end once.
        read = (
            seen
            if steps == 1 and tokens == sampled
            else sum(min((i + 1) * CHUNK, tokens) for i in range(steps))
        )
        memory = (steps * self._info.weight_bytes + read * position_bytes) / limits.memory
        products = 2 * (tokens * inner + sampled * head) / limits.int8
        attention = 4 * seen * model.num_layers * model.num_heads * model.head_dim
        return Point(x, 1e3 * seconds, 1e3 * memory, 1e3 * (products + attention / limits.float32))


Series = dict[str, list[Point]]


def measure_all(limits: Limits) -> dict[str, Series]:
    """Panel -> curve -> points."""
    panels: dict[str, Series] = {"batch": {}, "context": {}, "prompt": {}}
    for kv_type in KV_TYPES:
        meter = Meter(kv_type, limits)
        if kv_type == KV_TYPES[0]:
            panels["batch"]["decode"] = [meter.decode(n, n, BATCH_CONTEXT) for n in BATCHES]
            panels["prompt"]["prefill"] = [meter.prefill(n) for n in PROMPTS]
        for batch in CONTEXT_BATCHES:
            panels["context"][f"batch {batch}, {kv_type} KV"] = [
                meter.decode(n, batch, n) for n in CONTEXTS
            ]
        meter.close()
    return panels


def draw(panels: dict[str, Series], title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    labels = {
        "batch": f"sequences in the step (context {BATCH_CONTEXT})",
        "context": "tokens of context",
        "prompt": "tokens of the prompt",
    }
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), constrained_layout=True)
    for axis, (panel, series) in zip(axes, panels.items(), strict=True):
        for index, (name, points) in enumerate(series.items()):
            x, colour = [p.x for p in points], f"C{index}"
            axis.plot(x, [p.measured_ms for p in points], "o-", color=colour, label=name)
            axis.plot(x, [p.limit_ms for p in points], "--", color=colour, alpha=0.6)
        axis.set(xscale="log", yscale="log", xlabel=labels[panel], ylabel="milliseconds")
        axis.set_xticks(x, [str(n) for n in x], rotation=45)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(TARGET, dpi=110)
    plt.close(figure)


def main() -> None:
    threads = torch.get_num_threads()
    before = measure_limits(threads)
    panels = measure_all(before)
    for panel, series in panels.items():
        for name, points in series.items():
            for point in points:
                print(
                    f"{panel:8} {name:22} {point.x:5}: {point.measured_ms:8.2f} ms, limit "
                    f"{point.limit_ms:8.2f} ({point.limit_ms / point.measured_ms:4.0%})"
                )
    draw(panels, "Measured (points) and what memory and arithmetic allow (dashed)")
    results = {
        panel: {name: [asdict(p) for p in points] for name, points in series.items()}
        for panel, series in panels.items()
    }
    save("cost", {"limits": asdict(before), **results}, chunk=CHUNK, steps=STEPS)
