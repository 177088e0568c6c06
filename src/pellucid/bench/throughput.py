"""Offline throughput: the engine alone, in this process, without HTTP or text.

Prompts are random token ids, so no two share a prefix unless asked to; greedy, EOS ignored, so the
work is the same on every machine. They run in waves of `batch_size` that start together:

    prefill step   computes prompt tokens of at least one request (it may also decode others, when
                   a wave's prompts do not fit one step; these steps are counted in `mixed_steps`)
    decode step    computes nothing but the next token of running requests

    prefill_tokens_per_s = prompt tokens computed / seconds in prefill steps
    decode_tokens_per_s  = tokens that decode steps brought / seconds in decode steps

Seconds are wall-clock around `EngineCore.step`: scheduling, forward pass, sampling and bookkeeping.
A mixed step's decoded tokens count for neither rate, so mixing can only lower the prefill figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np

from pellucid.bench.settings import Workload
from pellucid.bench.summary import Summary, summarize
from pellucid.config import EngineConfig
from pellucid.errors import ConfigError, PellucidError
from pellucid.messages import AddRequest, EngineInfo, StepOutput, pack_tokens
from pellucid.sampling_params import SamplingParams

MS = 1e3
WARMUP_OUTPUT_LEN = 8


class Engine(Protocol):
    """What is measured: an EngineCore, or anything that steps like one."""

    info: EngineInfo

    @property
    def has_work(self) -> bool: ...

    def add(self, message: AddRequest) -> None: ...

    def step(self) -> StepOutput: ...


class Throughput(msgspec.Struct, kw_only=True):
    """The result. Rates in tokens per second, None where no step of the kind ran."""

    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    output_tokens_per_s: float  # generated tokens over the whole run, prefill included
    total_tokens_per_s: float  # prompt and generated tokens over the whole run
    seconds: float
    prompt_tokens: int  # computed; prefix-cache hits are not
    cached_prompt_tokens: int
    output_tokens: int
    ttft_ms: Summary | None  # from the start of the request's wave
    prefill_step_ms: Summary | None
    decode_step_ms: Summary | None
    prefill_steps: int
    decode_steps: int
    mixed_steps: int
    preemptions: int
    # Weights once per decode step, those of experts if chosen: how near memory's limit we are.
    weight_gb_per_s: float | None


@dataclass(slots=True)
class _Tally:
    """What the steps of the measured waves brought."""

    prefill_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)
    ttft_seconds: list[float] = field(default_factory=list)
    decode_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    mixed_steps: int = 0
    preemptions: int = 0


def undrafted(config: EngineConfig) -> EngineConfig:
    """Without speculation, unless it was asked for: on random prompts it says nothing."""
    if config.scheduler.speculative != "auto":
        return config
    scheduler = msgspec.structs.replace(config.scheduler, speculative="none")
    return msgspec.structs.replace(config, scheduler=scheduler)


def measure(
    engine: Engine, load: Workload, on_wave: Callable[[int], None] | None = None
) -> Throughput:
    """Warm up, run the load and report; `on_wave` hears how many prompts are done.

    Raises:
        ConfigError: the load does not fit the engine.
        PellucidError: the engine refused or lost a request.
    """
    _check_length(engine.info, load)
    rng = np.random.default_rng(load.seed)
    warmup = msgspec.structs.replace(load, output_len=min(load.output_len, WARMUP_OUTPUT_LEN))
    first = min(load.batch_size, load.num_prompts)
    _run_wave(engine, _requests(engine.info, warmup, rng, "warmup", first), _Tally())
    tally = _Tally()
    begin = time.perf_counter()
    for start in range(0, load.num_prompts, load.batch_size):
        size = min(load.batch_size, load.num_prompts - start)
        _run_wave(engine, _requests(engine.info, load, rng, f"wave{start}", size), tally)
        if on_wave is not None:
            on_wave(start + size)
    return _report(engine.info, load, tally, time.perf_counter() - begin)


def _check_length(info: EngineInfo, load: Workload) -> None:
    total = load.input_len + load.output_len
    if total > info.max_model_len:
        raise ConfigError(
            f"--input-len and --output-len: {total} tokens do not fit the context of "
            f"{info.max_model_len}"
        )


def _requests(
    info: EngineInfo, load: Workload, rng: np.random.Generator, name: str, count: int
) -> Iterator[AddRequest]:
    shared = np.random.default_rng(load.seed).integers(0, info.vocab_size, load.shared_prefix)
    sampling = SamplingParams(max_tokens=load.output_len, temperature=0.0, ignore_eos=True)
    for index in range(count):
        own = rng.integers(0, info.vocab_size, load.input_len - load.shared_prefix)
        yield AddRequest(
            request_id=f"{name}-{index}",
            prompt=pack_tokens([*shared.tolist(), *own.tolist()]),
            sampling=sampling,
            arrival_time=time.monotonic(),
        )


def _run_wave(engine: Engine, requests: Iterator[AddRequest], tally: _Tally) -> None:
    for request in requests:
        engine.add(request)
    begin = time.perf_counter()
    started: set[str] = set()
    while engine.has_work:
        before = time.perf_counter()
        output = engine.step()
        now = time.perf_counter()
        _count_step(output, started, now - before, now - begin, tally)


def _count_step(
    output: StepOutput, started: set[str], seconds: float, since_start: float, tally: _Tally
) -> None:
    decoded = first_tokens = 0
    for delta in output.deltas:
        if delta.finish_reason == "error":
            raise PellucidError(f"the engine refused a request: {delta.error}")
        tally.output_tokens += len(delta.token_ids)
        if delta.request_id in started:
            decoded += len(delta.token_ids)
        elif delta.token_ids:
            started.add(delta.request_id)
            first_tokens += 1
            tally.ttft_seconds.append(since_start)
            tally.cached_tokens += delta.num_cached_tokens
    tally.preemptions += output.stats.num_preemptions
    if first_tokens or output.stats.num_prompt_tokens:
        tally.prefill_seconds.append(seconds)
        tally.mixed_steps += decoded > 0
    else:
        tally.decode_seconds.append(seconds)
        tally.decode_tokens += decoded


def _report(info: EngineInfo, load: Workload, tally: _Tally, seconds: float) -> Throughput:
    prefill_seconds, decode_seconds = sum(tally.prefill_seconds), sum(tally.decode_seconds)
    prompt_tokens = load.num_prompts * load.input_len - tally.cached_tokens
    steps = len(tally.decode_seconds)
    weight_bytes = steps * info.bytes_read(tally.decode_tokens / steps) if steps else 0
    return Throughput(
        prefill_tokens_per_s=_rate(prompt_tokens, prefill_seconds),
        decode_tokens_per_s=_rate(tally.decode_tokens, decode_seconds),
        output_tokens_per_s=tally.output_tokens / seconds,
        total_tokens_per_s=(prompt_tokens + tally.output_tokens) / seconds,
        seconds=seconds,
        prompt_tokens=prompt_tokens,
        cached_prompt_tokens=tally.cached_tokens,
        output_tokens=tally.output_tokens,
        ttft_ms=summarize(tally.ttft_seconds, MS),
        prefill_step_ms=summarize(tally.prefill_seconds, MS),
        decode_step_ms=summarize(tally.decode_seconds, MS),
        prefill_steps=len(tally.prefill_seconds),
        decode_steps=len(tally.decode_seconds),
        mixed_steps=tally.mixed_steps,
        preemptions=tally.preemptions,
        weight_gb_per_s=_rate(weight_bytes / 1e9, decode_seconds) if weight_bytes else None,
    )


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 else None
