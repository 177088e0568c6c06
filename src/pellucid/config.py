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
GIB = 1 << 30
SECRET = {"secret": True}  # in Meta.extra: no message may repeat the value

Count = Annotated[int, Meta(ge=1)]
Threads = Annotated[int, Meta(ge=1, le=1024)]
Gibibytes = Annotated[float, Meta(gt=0.0, le=1 << 20)]
KeepAlive = Annotated[float, Meta(ge=-1.0, le=1e9)]


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
        Literal["auto", "float32", "bfloat16", "float16", "int8"],
        _about(
            "Type of cached keys and values. auto: int8 for the native kernels where the model's"
            " keys allow it and --dtype is not set, else as --dtype."
        ),
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
        Count | None,
        _about(
            "Token budget of one step, prompt and generated tokens together; by default 256 on a "
            "CPU, 2048 on a GPU, and at least twice --max-num-seqs."
        ),
    ] = None
    async_scheduling: Annotated[
        bool,
        _about("Plan and launch each step while the one before it still runs, which a GPU allows."),
    ] = False
    max_chunk_tokens: Annotated[
        int,
        _about("Most prompt tokens of one request in one step, so that others keep moving.", ge=1),
    ] = 512
    max_waiting: Annotated[
        int, _about("Length of the queue; a request beyond it is refused with 429.", ge=1)
    ] = 1024
    max_waiting_tokens: Annotated[
        Count | None,
        _about(
            "Most prompt tokens that wait for their first step; beyond it 429. No limit if unset."
        ),
    ] = None
    request_timeout: Annotated[
        float, _about("Seconds a request may take in all before it ends with an error.", gt=0.0)
    ] = 600.0

    def token_budget(self, device: str) -> int:
        """`max_num_batched_tokens`, or what suits the device ("cpu", "cuda:0").

        Open streams, and whoever arrives, wait for the end of a step: it should be no longer than
        it must. A CPU computes 256 rows about as fast per row as any number; a GPU needs more.
        """
        if self.max_num_batched_tokens is not None:
            return self.max_num_batched_tokens
        enough = 2048 if device.startswith("cuda") else 256
        return max(enough, 2 * self.max_num_seqs)  # answers leave half of it to prompts


class RunnerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What executes a step."""

    runner: Annotated[
        Literal["torch", "llama-cpp", "fake"],
        _about(
            "torch: this engine's own kernels; llama-cpp: llama.cpp's; fake: no model at all "
            "(tests, front-end benchmarks)."
        ),
    ] = "torch"
    device: Annotated[str, _about("cpu, cuda, or auto.", pattern="^(auto|cpu|cuda(:[0-9]+)?)$")] = (
        "auto"
    )
    kernels: Annotated[
        Literal["auto", "reference", "native", "triton"],
        _about("Implementation of the ops; auto takes the fastest that this machine has."),
    ] = "auto"
    cuda_graphs: Annotated[
        bool,
        _about("Replay steps that only decode from CUDA graphs; nothing to do without a GPU."),
    ] = False
    torch_compile: Annotated[
        bool,
        _about("Let torch.compile fuse norms, rotations and activations where no kernel does."),
    ] = False
    threads: Annotated[
        Threads | None, _about("Compute threads; all physical cores by default.")
    ] = None
    fake_step_ms: Annotated[
        float, _about("Milliseconds that a step of the fake runner sleeps.", ge=0.0)
    ] = 0.0


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


class ObserveSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the server tells of itself; see docs/observability.md."""

    timelines: Annotated[
        int, _about("Recent requests whose time line can be asked for; 0 keeps none.", ge=0)
    ] = 256
    trace: Annotated[
        str | None, _about("File that gets the whole run as a trace for ui.perfetto.dev.")
    ] = None
    record: Annotated[
        str | None, _about("File that gets the whole run's events, to be read back later.")
    ] = None
    record_tokens: Annotated[bool, _about("Put generated token ids into the file of --record.")] = (
        False
    )
    log_format: Annotated[
        Literal["text", "json"], _about("Log lines for people, or one JSON object per line.")
    ] = "text"
    log_prompts: Annotated[bool, _about("Put prompts into the log line of each request.")] = False
    log_interval: Annotated[
        float, _about("Seconds between throughput lines while busy; 0 for none.", ge=0.0)
    ] = 10.0
    access_log: Annotated[bool, _about("Log every HTTP request, health checks too.")] = False
    otlp_endpoint: Annotated[
        str | None, _about("URL of an OpenTelemetry collector that gets a span per request.")
    ] = None


class HostingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several models in one server; see docs/models.md."""

    model_memory_gib: Annotated[
        Gibibytes | None,
        _about(
            "GiB that all loaded models may take, KV caches included; beyond it the least recently "
            "used idle one is unloaded. No limit if unset."
        ),
    ] = None
    keep_alive: Annotated[
        KeepAlive | None,
        _about(
            "Seconds after which an idle model is unloaded, -1 for never; by default the first "
            "model stays and others go after 300."
        ),
    ] = None
    load_timeout: Annotated[
        float,
        _about("Seconds that a model which a request asks for may take to load.", gt=0.0, le=1e6),
    ] = 300.0


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
        int, _about("Most prompts in one completions or embeddings request.", ge=1, le=65536)
    ] = 128
    pooling: Annotated[
        Literal["last", "mean"],
        _about("What a text's vector is made of: its last token's state, or the mean of all."),
    ] = "last"
    max_messages: Annotated[int, _about("Most messages in one conversation.", ge=1, le=65536)] = (
        2048
    )
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
    page: Annotated[
        bool, _about("Show browsers a page at / to chat and watch the engine; see docs/page.md.")
    ] = True
    hosting: HostingSettings = HostingSettings()
    observe: ObserveSettings = ObserveSettings()


class AccessSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may speak to the server, and over what. See docs/gateway.md."""

    api_key: Annotated[
        list[str],
        _about(
            "A key that clients must send, as KEY or NAME:KEY; repeat it for several.",
            extra=SECRET,
        ),
    ] = []
    api_key_file: Annotated[
        str | None, _about("File with a NAME:KEY per line; read again whenever it changes.")
    ] = None
    cors_origin: Annotated[
        list[str],
        _about("Origin whose web pages may call the API, or *; repeat it for several."),
    ] = []
    ssl_certfile: Annotated[str | None, _about("Certificate chain (PEM): serve HTTPS.")] = None
    ssl_keyfile: Annotated[
        str | None, _about("Private key of --ssl-certfile, if that file does not hold it.")
    ] = None


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one client may ask for."""

    rate_limit_requests: Annotated[
        Count | None, _about("Requests a minute for each API key, or address without keys.")
    ] = None
    rate_limit_tokens: Annotated[
        Count | None, _about("Prompt and answer tokens a minute for each key or address.")
    ] = None
    rate_limit_storage: Annotated[
        str,
        _about(
            "memory, or redis://HOST:PORT to share the counts between servers.",
            pattern="^(memory|(redis|rediss|unix)://.+)$",
            extra=SECRET,
        ),
    ] = "memory"
    head_timeout: Annotated[
        float, _about("Seconds for a connection to send a request's head.", gt=0.0)
    ] = 20.0
    body_timeout: Annotated[float, _about("Seconds for a request's body to arrive.", gt=0.0)] = 60.0


class AnswerCacheSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cache of whole answers to requests that can only have one."""

    cache: Annotated[
        str,
        _about(
            "Where answers to deterministic requests are kept: off, memory, or redis://HOST:PORT.",
            pattern="^(off|memory|(redis|rediss|unix)://.+)$",
            extra=SECRET,
        ),
    ] = "off"
    cache_memory_mib: Annotated[Count, _about("Size of --cache memory in MiB.")] = 64
    cache_ttl: Annotated[int, _about("Seconds for which an answer is kept.", ge=1)] = 3600
    cache_shared: Annotated[bool, _about("Let different API keys share cached answers.")] = False


class LifeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the server begins, goes on after a crash, and ends."""

    warm_up: Annotated[
        bool, _about("Answer a small request of its own before the server counts as ready.")
    ] = True
    drain_timeout: Annotated[
        float, _about("Seconds that open requests get to finish after SIGTERM.", ge=0.0)
    ] = 25.0
    engine_restarts: Annotated[
        int, _about("Failures of the engine in a row after which the server gives up.", ge=0)
    ] = 5
    engine_retries: Annotated[
        int,
        _about("How often a request outlives an engine that died before its first token.", ge=0),
    ] = 1


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands between clients and the routes."""

    access: AccessSettings = AccessSettings()
    limits: LimitSettings = LimitSettings()
    answers: AnswerCacheSettings = AnswerCacheSettings()
    life: LifeSettings = LifeSettings()


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
