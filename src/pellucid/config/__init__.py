"""Every setting of the engine and the server, once.

Each field carries its type, its limits and its one-line description; command-line flags,
`PELLUCID_*` variables and the keys of a YAML file all derive from these structs (see
`cli/options.py`), so a setting added here is a setting everywhere. The structs are frozen and
composed: a component is handed its own part, never the whole.
"""

from pellucid.config.compose import compose, sections
from pellucid.config.engine import (
    CacheSettings,
    EngineConfig,
    ModelSettings,
    RunnerSettings,
    SchedulerSettings,
)
from pellucid.config.fields import GIB, MIB
from pellucid.config.gateway import (
    AccessSettings,
    AnswerCacheSettings,
    GatewayConfig,
    LifeSettings,
    LimitSettings,
)
from pellucid.config.server import HostingSettings, ObserveSettings, ServerConfig

__all__ = [
    "GIB",
    "MIB",
    "AccessSettings",
    "AnswerCacheSettings",
    "CacheSettings",
    "EngineConfig",
    "GatewayConfig",
    "HostingSettings",
    "LifeSettings",
    "LimitSettings",
    "ModelSettings",
    "ObserveSettings",
    "RunnerSettings",
    "SchedulerSettings",
    "ServerConfig",
    "compose",
    "sections",
]
