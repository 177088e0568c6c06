"""Settings by flat names, sorted into the sections of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from pellucid.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)


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
