"""The HTTP front end, the models behind it and what it tells of itself."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from pellucid.config.fields import MIB, Gibibytes, KeepAlive, about


class ObserveSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the server tells of itself; see docs/observability.md."""

    timelines: Annotated[
        int, about("Recent requests whose time line can be asked for; 0 keeps none.", ge=0)
    ] = 256
    trace: Annotated[
        str | None, about("File that gets the whole run as a trace for ui.perfetto.dev.")
    ] = None
    record: Annotated[
        str | None, about("File that gets the whole run's events, to be read back later.")
    ] = None
    record_tokens: Annotated[bool, about("Put generated token ids into the file of --record.")] = (
        False
    )
    log_format: Annotated[
        Literal["text", "json"], about("Log lines for people, or one JSON object per line.")
    ] = "text"
    log_prompts: Annotated[bool, about("Put prompts into the log line of each request.")] = False
    log_interval: Annotated[
        float, about("Seconds between throughput lines while busy; 0 for none.", ge=0.0)
    ] = 10.0
    access_log: Annotated[bool, about("Log every HTTP request, health checks too.")] = False
    otlp_endpoint: Annotated[
        str | None, about("URL of an OpenTelemetry collector that gets a span per request.")
    ] = None


class HostingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several models in one server; see docs/models.md."""

    model_memory_gib: Annotated[
        Gibibytes | None,
        about(
            "GiB that all loaded models may take, KV caches included; beyond it the least recently "
            "used idle one is unloaded. No limit if unset."
        ),
    ] = None
    keep_alive: Annotated[
        KeepAlive | None,
        about(
            "Seconds after which an idle model is unloaded, -1 for never; by default the first "
            "model stays and others go after 300."
        ),
    ] = None
    allow_lora_updates: Annotated[
        str | None,
        about("Folder whose LoRA adapters clients may load and unload; none may, if unset."),
    ] = None
    load_timeout: Annotated[
        float,
        about("Seconds that a model which a request asks for may take to load.", gt=0.0, le=1e6),
    ] = 300.0


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP front end."""

    host: Annotated[str, about("Address to listen on; loopback unless you say otherwise.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, about("Port to listen on; 0 takes a free one.", ge=0, le=65535)] = 8000
    max_body_bytes: Annotated[
        int, about("Largest request body in bytes; beyond it 413.", ge=1024)
    ] = 8 * MIB
    max_prompts: Annotated[
        int, about("Most prompts in one completions or embeddings request.", ge=1, le=65536)
    ] = 128
    pooling: Annotated[
        Literal["last", "mean"],
        about("What a text's vector is made of: its last token's state, or the mean of all."),
    ] = "last"
    max_messages: Annotated[int, about("Most messages in one conversation.", ge=1, le=65536)] = 2048
    max_n: Annotated[int, about("Largest n, answers per prompt.", ge=1, le=16384)] = 128
    max_logprobs: Annotated[
        int, about("Most alternatives per token in logprobs.", ge=0, le=1024)
    ] = 20
    tool_call_parser: Annotated[
        Literal["auto", "hermes", "llama3_json", "mistral", "pythonic"],
        about("How the model writes tool calls; auto: as its chat template says."),
    ] = "auto"
    reasoning_parser: Annotated[
        Literal["none", "deepseek_r1", "qwen3"],
        about("How the model marks its thoughts, which then come apart from the answer."),
    ] = "none"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], about("How much the server logs.")
    ] = "info"
    page: Annotated[
        bool, about("Show browsers a page at / to chat and watch the engine; see docs/page.md.")
    ] = True
    hosting: HostingSettings = HostingSettings()
    observe: ObserveSettings = ObserveSettings()
