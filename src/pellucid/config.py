"""Every setting of the engine and the server, once.

Each field carries its type, its limits and its one-line description; command-line flags,
`PELLUCID_*` variables and the keys of a YAML file all derive from these structs (see
`cli/options.py`), so a setting added here is a setting everywhere. The structs are frozen and
composed: a component is handed its own part, never the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from pellucid.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)

MIB = 1 << 20

Count = Annotated[int, Meta(ge=1)]
Threads = Annotated[int, Meta(ge=1, le=1024)]


def _about(description: str, **limits: Any) -> Meta:
    return Meta(description=description, **limits)


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model, and how it is held in memory."""

    model: Annotated[
        str,
        _about(
            "Alias (see `pellucid models`), .gguf file, Hugging Face folder, or hf:org/name[:file]."
        ),
    ] = "smollm2-135m"
    served_model_name: Annotated[
        str | None, _about("Name under which the API serves the model; its own by default.")
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        _about("Type of float weights and of activations; auto: bfloat16 where it is fast."),
    ] = "auto"
    quantization: Annotated[
        Literal["none", "int8", "int4"],
        _about("Round float weights while loading; weights that are quantised already stay so."),
    ] = "none"
    max_model_len: Annotated[
        Count | None,
        _about("Longest prompt plus answer, in tokens; the model's own limit by default."),
    ] = None
    chat_template: Annotated[
        str | None, _about("File with a Jinja chat template that replaces the model's own.")
    ] = None
    cache_dir: Annotated[
        str | None, _about("Folder for downloaded models; ~/.cache/pellucid by default.")
    ] = None
    offline: Annotated[bool, _about("Never touch the network; use what is already there.")] = False


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The paged KV cache."""

    block_size: Annotated[int, _about("Tokens per KV block.", ge=1, le=1024)] = 16
    kv_cache_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        _about("Type of cached keys and values; auto: as --dtype."),
    ] = "auto"
    num_kv_blocks: Annotated[
        Count | None, _about("Size of the KV pool in blocks; overrides the two memory flags.")
    ] = None
    kv_cache_memory_mib: Annotated[
        Count | None, _about("Size of the KV pool in MiB; overrides --memory-fraction.")
    ] = None
    memory_fraction: Annotated[
        float, _about("Share of the free memory that the KV pool may take.", gt=0.0, le=1.0)
    ] = 0.3
    prefix_caching: Annotated[
        bool, _about("Keep blocks of finished requests and share equal prefixes.")
    ] = True


class SchedulerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who runs in a step, and the limits of the queue."""

    policy: Annotated[
        str,
        _about("fifo, priority, shortest-first, fair-share, or your own as package.module:Class."),
    ] = "fifo"
    max_num_seqs: Annotated[int, _about("Most requests that run at once.", ge=1, le=65536)] = 64
    max_num_batched_tokens: Annotated[
        int, _about("Token budget of one step, prompt and generated tokens together.", ge=1)
    ] = 2048
    max_chunk_tokens: Annotated[
        int,
        _about("Most prompt tokens of one request in one step, so that others keep moving.", ge=1),
    ] = 512
    max_waiting: Annotated[
        int, _about("Length of the queue; a request beyond it is refused with 429.", ge=1)
    ] = 1024
    request_timeout: Annotated[
        float, _about("Seconds a request may take in all before it ends with an error.", gt=0.0)
    ] = 600.0


class RunnerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What executes a step."""

    runner: Annotated[
        Literal["torch", "fake"],
        _about("torch runs the model; fake answers without one (tests, front-end benchmarks)."),
    ] = "torch"
    device: Annotated[str, _about("cpu, cuda, or auto.", pattern="^(auto|cpu|cuda(:[0-9]+)?)$")] = (
        "auto"
    )
    kernels: Annotated[
        Literal["auto", "reference", "native", "triton"],
        _about("Implementation of the ops; auto takes the fastest that this machine has."),
    ] = "auto"
    threads: Annotated[
        Threads | None, _about("Compute threads; all physical cores by default.")
    ] = None


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that the engine process is told."""

    model: ModelSettings = ModelSettings()
    cache: CacheSettings = CacheSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    runner: RunnerSettings = RunnerSettings()

    @classmethod
    def of(cls, **settings: Any) -> EngineConfig:
        """Build from flat names, `EngineConfig.of(model="x.gguf", max_num_seqs=8)`.

        Raises ConfigError naming the setting that is unknown or out of range.
        """
        return compose(cls, settings)


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP front end."""

    host: Annotated[str, _about("Address to listen on; loopback unless you say otherwise.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, _about("Port to listen on; 0 takes a free one.", ge=0, le=65535)] = 8000
    max_body_bytes: Annotated[
        int, _about("Largest request body in bytes; beyond it 413.", ge=1024)
    ] = 8 * MIB
    max_prompts: Annotated[
        int, _about("Most prompts in one completions request.", ge=1, le=65536)
    ] = 128
    max_n: Annotated[int, _about("Largest n, answers per prompt.", ge=1, le=16384)] = 128
    max_logprobs: Annotated[
        int, _about("Most alternatives per token in logprobs.", ge=0, le=1024)
    ] = 20
    tool_call_parser: Annotated[
        Literal["auto", "hermes", "llama3_json", "mistral", "pythonic"],
        _about("How the model writes tool calls; auto: as its chat template says."),
    ] = "auto"
    reasoning_parser: Annotated[
        Literal["none", "deepseek_r1", "qwen3"],
        _about("How the model marks its thoughts, which then come apart from the answer."),
    ] = "none"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _about("How much the server logs.")
    ] = "info"


def sections(config_type: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct]]:
    """The nested structs of a composed config, by field name; empty for a flat one."""
    return {
        f.name: f.type
        for f in msgspec.structs.fields(config_type)
        if isinstance(f.type, type) and issubclass(f.type, msgspec.Struct)
    }


def compose(config_type: type[T], flat: Mapping[str, Any]) -> T:
    """Sort flat settings into the sections of `config_type` and validate them.

    Strings are converted ("8" is a good int), as environment variables need.

    Raises:
        ConfigError: a name no section has, a wrong type, or a value out of range; `param` names it.
    """
    parts = sections(config_type)
    home = {f.name: part for part, t in parts.items() for f in msgspec.structs.fields(t)}
    own = {f.name for f in msgspec.structs.fields(config_type)} - parts.keys()
    nested: dict[str, Any] = {part: {} for part in parts}
    for name, value in flat.items():
        if name in own:
            nested[name] = value
        elif name in home:
            nested[home[name]][name] = value
        else:
            raise ConfigError(f"unknown setting {name!r}", param=name)
    try:
        return msgspec.convert(nested, config_type, strict=False)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`").rpartition(".")[2]
        raise ConfigError(f"{name or 'settings'}: {reason}", param=name or None) from None
