"""How fast are whole models? Random weights of known shapes, through the engine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import msgspec

from benchmarks.gpu import models
from benchmarks.gpu.context import Context
from pellucid.bench.settings import Workload
from pellucid.bench.throughput import measure
from pellucid.engine.core import EngineCore
from pellucid.kernels.reference import ReferenceOps
from pellucid.models.config import ModelConfig
from pellucid.runner.graphs import context_buckets, row_buckets
from pellucid.runner.torch_runner import TorchRunner
from pellucid.sampling_params import SamplingParams

SEQUENCES, SHORTEST, LONGEST = 256, 100, 1024  # of nano-vllm's benchmark
LARGEST_ID = 10_000
STEPS = 4  # of a bucket of rows in the warm-up; a long prompt takes the first of them


def decode(context: Context) -> None:
    """llama3-8b's shape at batch 1: what of the memory's speed is left, in 16 and in 4 bits."""
    config = models.TINY if context.tiny else models.LLAMA3_8B
    every: list[tuple[str, ReferenceOps | None, int | None, bool]] = [
        ("bfloat16, torch", ReferenceOps(), None, False),
        ("bfloat16, triton", context.triton(), None, False),
        ("bfloat16, triton, replayed", context.triton(), None, True),
        ("int4, triton", context.triton(), 4, False),
        ("int4, triton, replayed", context.triton(), 4, True),
        ("bfloat16, triton, float weights too", context.triton(dense=1), None, False),
    ]
    for name, ops, bits, replayed in every:
        if ops is not None and context.seconds_left > 10:
            context.attempt(name, _decoding(context, config, ops, bits, replayed))


def _decoding(
    context: Context, config: ModelConfig, ops: ReferenceOps, bits: int | None, replayed: bool
) -> Callable[[], dict[str, Any]]:
    limits = context.known_limits()  # before a model takes the memory

    def run() -> dict[str, Any]:
        runner, settings = models.make_runner(
            config,
            ops,
            context.device,
            context.dtype,
            tokens=2048,
            longest=256,
            max_num_seqs=4,
            bits=bits,
            replayed=replayed,
        )
        core = models.engine(runner, settings)
        length = 4 if context.tiny else 64
        load = Workload(input_len=length, output_len=2 * length, num_prompts=1, batch_size=1)
        result = measure(core, load)
        weight_bytes = models.bytes_read(runner)
        runner.close()
        rate = result.decode_tokens_per_s or 0.0
        # gpt-fast's figure, too: bytes of the weights that a step reads times tokens per second.
        found = {"weight_bytes": weight_bytes, "weight_gb_per_s": weight_bytes * rate / 1e9}
        found["share_of_copy"] = weight_bytes * rate / limits.memory
        return {**msgspec.to_builtins(result), **found}

    return run


def nano_vllm(context: Context) -> None:
    """nano-vllm's benchmark: 256 requests at once, lengths 100 to 1,024, end tokens ignored."""
    config = models.TINY if context.tiny else models.QWEN3_06B
    every: dict[str, ReferenceOps | None] = {
        "triton, replayed": context.triton(),
        "triton": context.triton(),
        "torch": ReferenceOps(),
        "triton, float weights too": context.triton(dense=1),
    }
    whole = context.seconds_left
    for name, ops in every.items():
        if ops is not None:
            replayed = name.endswith("replayed")
            # Half of the stage for what others are compared with, and the rest in equal parts.
            share = whole / 2 if replayed else whole / 2 / (len(every) - 1)
            context.attempt(
                name,
                lambda ops=ops, replayed=replayed, share=share: _all_at_once(
                    context, config, ops, share, replayed
                ),
            )


def _all_at_once(
    context: Context, config: ModelConfig, ops: ReferenceOps, seconds: float, replayed: bool
) -> dict[str, Any]:
    end = time.monotonic() + seconds
    prompts, answers = workload(config.vocab_size, tiny=context.tiny)
    tokens = sum(map(len, prompts)) + sum(answers)
    runner, settings = models.make_runner(
        *(config, ops, context.device, context.dtype),
        tokens=tokens,
        longest=max(map(len, prompts)) + max(answers),
        max_num_seqs=len(prompts),
        replayed=replayed,
    )
    core = models.engine(runner, settings)
    warm_up = _warmed_up(core, runner, len(prompts))
    for index, (prompt, length) in enumerate(zip(prompts, answers, strict=True)):
        sampling = SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=length, seed=index)
        core.add(models.request(f"r{index}", prompt, sampling))
    begin, brought, steps = time.monotonic(), 0, 0
    while core.has_work and time.monotonic() < end:
        brought += sum(len(delta.token_ids) for delta in core.step().deltas)
        steps += 1
    taken = time.monotonic() - begin
    finished = not core.has_work
    captures = len(models.captured(runner)) - warm_up["captures"]
    runner.close()
    return {
        "output_tokens": brought,
        "of": sum(answers),
        "finished": finished,  # else its time was over, with fewer and fewer requests to come
        "seconds": taken,
        "output_tokens_per_s": brought / taken,
        "steps": steps,
        "captures": captures,  # in the time that is measured; each takes as long as many steps
        "warm-up": warm_up,
    }


def _warmed_up(core: EngineCore, runner: TorchRunner, most_rows: int) -> dict[str, Any]:
    """Go through every number of rows and bound on a context for which there is a CUDA graph.

    Requests of a few tokens, of which as many are left after some steps as the next bucket has
    rows; one of them, the last to end, has a context of the bucket's size. What replays nothing
    does the same steps: kernels are compiled in them.
    """
    rows, begin = row_buckets(most_rows), time.monotonic()
    captures, capturing = 0, 0.0
    # The longest prompt: a few tokens, and then a few more than each bound but the last.
    for wave, longest in enumerate([4, *(c + 4 for c in context_buckets(core.info.max_model_len))]):
        if longest + STEPS * len(rows) >= core.info.max_model_len:
            break
        for index in range(most_rows):
            sampling = SamplingParams(
                temperature=0.6,
                ignore_eos=True,
                max_tokens=1 + STEPS * sum(index < count for count in rows),
                seed=index,
            )
            prompt = [1] * (4 if index else longest)
            core.add(models.request(f"warm-up-{wave}-{index}", prompt, sampling))
        while core.has_work:
            before = time.monotonic()
            core.step()
            if len(models.captured(runner)) > captures:
                captures = len(models.captured(runner))
                capturing += time.monotonic() - before
    return {
        "seconds": time.monotonic() - begin,
        "captures": captures,
        "seconds of steps that captured": capturing,
    }


def workload(vocab_size: int, *, tiny: bool = False) -> tuple[list[list[int]], list[int]]:
    """Prompts of random ids and the lengths of their answers, as that benchmark draws them."""
    draw = random.Random(0)
    count, least, most = (4, 3, 8) if tiny else (SEQUENCES, SHORTEST, LONGEST)
    prompts = [
        [draw.randint(0, LARGEST_ID) % vocab_size for _ in range(draw.randint(least, most))]
        for _ in range(count)
    ]
    return prompts, [draw.randint(least, most) for _ in range(count)]
