"""Config structs as a list of settings: what flags, variables and YAML keys are made of."""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta

from pellucid.cli.sampling import Sampling
from pellucid.config import EngineConfig, GatewayConfig, ServerConfig, sections

SHARED = (EngineConfig, ServerConfig, GatewayConfig, Sampling)  # in the environment and file, too
PANELS = {  # a section's own name otherwise
    "answers": "Answer cache",
    "cache": "KV cache",
    "hosting": "Several models",
    "life": "Lifecycle",
    "observe": "Observability",
}

Kind = Literal["text", "integer", "number", "switch", "list"]
_KINDS: dict[Any, Kind] = {bool: "switch", int: "integer", float: "number", list: "list"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of a config struct, as a user meets it."""

    name: str
    section: str
    description: str
    default: Any
    kind: Kind
    choices: tuple[str, ...] = ()
    secret: bool = False  # no message may repeat its value
    short: str | None = None  # another flag for it

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "PELLUCID_" + self.name.upper()

    @property
    def panel(self) -> str:
        return PANELS.get(self.section, self.section.capitalize())

    @property
    def is_model(self) -> bool:
        """Whether it is the engine's model, which commands also take as MODEL."""
        return self.name == self.section == "model"


def settings_of(config_type: type[msgspec.Struct]) -> list[Setting]:
    """All settings of a struct, those of its sections included, in order of declaration."""
    name = config_type.__name__.removesuffix("Config").removesuffix("Settings").lower()
    parts = sections(config_type)
    own = [field for field in msgspec.structs.fields(config_type) if field.name not in parts]
    return [
        *(_setting(name, field) for field in own),
        *(
            _setting(section, field)
            for section, part in parts.items()
            for field in msgspec.structs.fields(part)
        ),
    ]


@functools.cache
def shared_settings() -> dict[str, frozenset[str]]:
    """Names of the settings that a file may hold, by section: one file can serve all commands."""
    shared: dict[str, set[str]] = {}
    for struct in SHARED:
        for setting in settings_of(struct):
            shared.setdefault(setting.section, set()).add(setting.name)
    return {section: frozenset(names) for section, names in shared.items()}


def _setting(section: str, field: msgspec.structs.FieldInfo) -> Setting:
    described, description, extra = field.type, "", dict[str, Any]()
    while get_origin(described) in (Annotated, Union, types.UnionType):
        if get_origin(described) is Annotated:
            described, *notes = get_args(described)
            metas = [note for note in notes if isinstance(note, Meta)]
            description = description or next((m.description for m in metas if m.description), "")
            for meta in metas:
                extra |= meta.extra or {}
        else:  # X | None
            described = next(t for t in get_args(described) if t is not types.NoneType)
    origin = get_origin(described)
    return Setting(
        name=field.name,
        section=section,
        description=description,
        default=None if field.default is NODEFAULT else field.default,
        kind=_KINDS.get(origin or described, "text"),
        choices=get_args(described) if origin is Literal else (),
        secret=extra.get("secret", False),
        short=extra.get("short"),
    )
