"""The YAML file of `--config`: the settings of config/, flat or in their sections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pellucid.errors import ConfigError


def read_config_file(path: Path, sections: Mapping[str, frozenset[str]]) -> dict[str, Any]:
    """Settings of a YAML file by flat name.

    `max_num_seqs: 8` and `scheduler: {max_num_seqs: 8}` say the same; `sections` holds the names
    that each section may have. A name that is both a section and a setting (`model`) is told apart
    by its value.

    Raises:
        ConfigError: the file cannot be read or parsed, or a key is unknown or given twice.
    """
    known = frozenset[str]().union(*sections.values())
    settings: dict[str, Any] = {}
    for key, value in _load(path).items():
        nested = key in sections and isinstance(value, dict)
        allowed, entries = (sections[key], value) if nested else (known, {key: value})
        for name, entry in entries.items():
            shown = f"{key}.{name}" if nested else name
            if name not in allowed:
                raise ConfigError(f"{path}: unknown setting {shown!r}", param=str(name))
            if name in settings:
                raise ConfigError(f"{path}: {name!r} is set twice", param=name)
            settings[name] = entry
    return settings


def _load(path: Path) -> dict[Any, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config: {path} is not YAML: {_one_line(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config: {path} must hold settings as `name: value` lines")
    return content


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error).splitlines()[0]
    return f"line {mark.line + 1}: {getattr(error, 'problem', 'syntax error')}"
