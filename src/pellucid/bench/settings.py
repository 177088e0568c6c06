"""What the benchmarks can be told; the command line's flags derive from it as from config/."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pellucid.errors import ConfigError


def _about(description: str, **limits: Any) -> Meta:
    return Meta(description=description, **limits)


class _Prompts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Random prompts, in tokens."""

    input_len: Annotated[int, _about("Tokens of each random prompt.", ge=1)] = 128
    output_len: Annotated[int, _about("Tokens of each answer.", ge=1)] = 128
    shared_prefix: Annotated[
        int, _about("Tokens that all prompts start with; none are shared by default.", ge=0)
    ] = 0
    seed: Annotated[int, _about("Seed of prompts and arrival times.", ge=0)] = 0

    def __post_init__(self) -> None:
        if self.shared_prefix > self.input_len:
            raise ConfigError(
                f"--shared-prefix: must be at most --input-len, {self.input_len}",
                param="shared_prefix",
            )


class Workload(_Prompts, frozen=True, kw_only=True):
    """An offline run: waves of prompts that start together."""

    num_prompts: Annotated[int, _about("Prompts in all.", ge=1)] = 8
    batch_size: Annotated[int, _about("Prompts that run together, a wave.", ge=1)] = 8


class RandomModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that need not be there."""

    random_weights: Annotated[
        bool, _about("Measure random weights, in the shape that --shape names.")
    ] = False
    shape: Annotated[
        str | None,
        _about("tiny, smollm2-135m (default), qwen3-0.6b, llama3-8b, olmoe-1b-7b, or another."),
    ] = None

    def __post_init__(self) -> None:
        if self.shape is not None and not self.random_weights:
            raise ConfigError("--shape: needs --random-weights", param="shape")


class KernelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which shapes to measure kernels on, beside the model's."""

    rows: Annotated[
        list[Annotated[int, Meta(ge=1, le=4096)]],
        _about("Tokens of a step; may be repeated; 1, 8, 32 and 256 by default."),
    ] = []
    context: Annotated[int, _about("Tokens that attention looks back on.", ge=1, le=1 << 17)] = 512
    write_thresholds: Annotated[
        bool,
        _about("On a GPU: measure from which sizes on Triton is faster, and keep that for later."),
    ] = False


class LoadSettings(_Prompts, frozen=True, kw_only=True):
    """Load on a server."""

    base_url: Annotated[str, _about("The server, with or without /v1.", pattern="^https?://")] = (
        "http://127.0.0.1:8000"
    )
    model: Annotated[str | None, _about("Name of the model; the server's first by default.")] = None
    endpoint: Annotated[Literal["completions", "chat"], _about("Which API to call.")] = (
        "completions"
    )
    num_prompts: Annotated[int, _about("Requests in all.", ge=1)] = 100
    request_rate: Annotated[
        float, _about("Requests that arrive per second; inf sends all at once.", gt=0.0)
    ] = math.inf
    burstiness: Annotated[
        float, _about("Gamma shape of the gaps between arrivals; 1: Poisson, less: bursts.", gt=0.0)
    ] = 1.0
    max_concurrency: Annotated[
        Annotated[int, Meta(ge=1)] | None, _about("Most requests in flight; any by default.")
    ] = None
    prompts: Annotated[
        Literal["auto", "tokens", "words"],
        _about(
            "Random prompts as token ids or words; auto: ids for completions of pellucid or vLLM."
        ),
    ] = "auto"
    vocab_size: Annotated[int, _about("Random token ids stay below this.", ge=2)] = 32_000
    dataset: Annotated[
        str | None,
        _about("JSONL file: `prompt` or `messages` on each line, and perhaps `max_tokens`."),
    ] = None
    temperature: Annotated[float, _about("Temperature of every request.", ge=0.0)] = 0.0
    ignore_eos: Annotated[
        bool, _about("Ask for answers of full length; not every server knows the field.")
    ] = False
    goodput: Annotated[
        list[str], _about("Limit METRIC:MS on ttft, tpot or e2e; may be repeated.")
    ] = []
    warmup: Annotated[int, _about("Requests before the clock starts.", ge=0)] = 1
    timeout: Annotated[float, _about("Seconds of silence that fail a request.", gt=0.0)] = 600.0
