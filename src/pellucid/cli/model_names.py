"""What a user may write for a model: SOURCE or NAME=SOURCE, and several of them for a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pellucid.errors import ConfigError


def chosen_models(positional: str | None, flag: str | list[str] | None) -> list[str] | None:
    """Those of the command line: MODEL or --model, which a server takes any number of times.

    Raises ConfigError if both are given and differ.
    """
    flags = [flag] if isinstance(flag, str) else flag or []
    if positional is None:
        return flags or None
    if flags not in ([], [positional]):
        shown = " ".join(f"--model {model!r}" for model in flags)
        raise ConfigError(f"MODEL {positional!r} and {shown} differ: give one of them")
    return [positional]


def model_fields(model: Any, served_name: Any, *, several: bool) -> dict[str, Any]:
    """Settings that `model` stands for: NAME=SOURCE is a source and the name it is served under.

    Args:
        served_name: that of --served-model-name, if it was given.

    Raises:
        ConfigError: there is a name too many, or a part is missing.
    """
    name, source = _split(model) if isinstance(model, str) else (None, model)
    if name is None and served_name is None:
        return {"model": source}
    if served_name is not None and (several or name is not None):
        raise ConfigError(
            "--served-model-name is for a single model without a name; write NAME=SOURCE instead",
            param="served_model_name",
        )
    return {"model": source, "served_model_name": served_name if name is None else name}


def _split(model: str) -> tuple[str | None, str]:
    name, equals, source = model.partition("=")
    if not equals or model.startswith("hf:") or _exists(model):
        return None, model
    if not name or not source:
        raise ConfigError(f"model: {model!r} is not of the form NAME=SOURCE", param="model")
    return name, source


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError):  # too long for a path, or with a null in it
        return False
