"""What stands between clients and the routes."""

from __future__ import annotations

from typing import Annotated

import msgspec

from pellucid.config.fields import SECRET, Count, about


class AccessSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may speak to the server, and over what. See docs/gateway.md."""

    api_key: Annotated[
        list[str],
        about(
            "A key that clients must send, as KEY or NAME:KEY; repeat it for several.",
            extra=SECRET,
        ),
    ] = []
    api_key_file: Annotated[
        str | None, about("File with a NAME:KEY per line; read again whenever it changes.")
    ] = None
    cors_origin: Annotated[
        list[str],
        about("Origin whose web pages may call the API, or *; repeat it for several."),
    ] = []
    ssl_certfile: Annotated[str | None, about("Certificate chain (PEM): serve HTTPS.")] = None
    ssl_keyfile: Annotated[
        str | None, about("Private key of --ssl-certfile, if that file does not hold it.")
    ] = None


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one client may ask for."""

    rate_limit_requests: Annotated[
        Count | None, about("Requests a minute for each API key, or address without keys.")
    ] = None
    rate_limit_tokens: Annotated[
        Count | None, about("Prompt and answer tokens a minute for each key or address.")
    ] = None
    rate_limit_storage: Annotated[
        str,
        about(
            "memory, or redis://HOST:PORT to share the counts between servers.",
            pattern="^(memory|(redis|rediss|unix)://.+)$",
            extra=SECRET,
        ),
    ] = "memory"
    head_timeout: Annotated[
        float, about("Seconds for a connection to send a request's head.", gt=0.0)
    ] = 20.0
    body_timeout: Annotated[float, about("Seconds for a request's body to arrive.", gt=0.0)] = 60.0


class AnswerCacheSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cache of whole answers to requests that can only have one."""

    cache: Annotated[
        str,
        about(
            "Where answers to deterministic requests are kept: off, memory, or redis://HOST:PORT.",
            pattern="^(off|memory|(redis|rediss|unix)://.+)$",
            extra=SECRET,
        ),
    ] = "off"
    cache_memory_mib: Annotated[Count, about("Size of --cache memory in MiB.")] = 64
    cache_ttl: Annotated[int, about("Seconds for which an answer is kept.", ge=1)] = 3600
    cache_shared: Annotated[bool, about("Let different API keys share cached answers.")] = False


class LifeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the server begins, goes on after a crash, and ends."""

    warm_up: Annotated[
        bool, about("Answer a small request of its own before the server counts as ready.")
    ] = True
    drain_timeout: Annotated[
        float, about("Seconds that open requests get to finish after SIGTERM.", ge=0.0)
    ] = 25.0
    engine_restarts: Annotated[
        int, about("Failures of the engine in a row after which the server gives up.", ge=0)
    ] = 5
    engine_retries: Annotated[
        int,
        about("How often a request outlives an engine that died before its first token.", ge=0),
    ] = 1


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands between clients and the routes."""

    access: AccessSettings = AccessSettings()
    limits: LimitSettings = LimitSettings()
    answers: AnswerCacheSettings = AnswerCacheSettings()
    life: LifeSettings = LifeSettings()
