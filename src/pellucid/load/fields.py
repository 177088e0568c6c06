"""Checked access to settings that a model's file states: config.json or GGUF metadata.

Whatever a file claims is compared with a range before anything is computed from it; a value of the
wrong kind or size is a `ModelError` that names the file, the key and the limit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pellucid.errors import ModelError

MAX_JSON_BYTES = 64 << 20


class Fields:
    """A mapping whose getters check type and range.

    A key that is absent, or null, gives the default; without a default it is an error.
    """

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self._values.get(self._prefix + key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is, unchecked; `default` if absent or null."""
        value = self._values.get(self._prefix + key)
        return default if value is None else value

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self._value(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self._value(key, default)
        if type(value) not in (int, float) or not low <= value <= high:  # NaN fails too
            raise self.wrong(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        return self.integer(key, low, high) if key in self else None

    def optional_number(self, key: str, low: float, high: float) -> float | None:
        return self.number(key, low, high) if key in self else None

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._value(key, default)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if type(value) is not str:
            raise self.wrong(key, "a string")
        return value

    def items(self, key: str, max_length: int = 1024) -> list[Any]:
        """A list; empty if absent."""
        value = self.get(key, [])
        if not isinstance(value, list) or len(value) > max_length:
            raise self.wrong(key, f"a list of at most {max_length} items")
        return value

    def section(self, key: str) -> Fields | None:
        """A nested mapping, None if absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Fields(value, f"{self.where}: {key}")

    def wrong(self, key: str, wanted: str) -> ModelError:
        """The error for a value of `key` that is not what it must be."""
        shown = f"{self._values.get(self._prefix + key)!r:.60}"
        return ModelError(f"{self.where}: {self._prefix}{key} must be {wanted}, not {shown}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.get(key, default)
        if value is None:
            raise ModelError(f"{self.where}: {self._prefix}{key} is missing")
        return value


def positive_numbers(values: list[Any]) -> bool:
    """Whether all are finite and above zero, as frequency factors must be."""
    return all(type(v) in (int, float) and math.isfinite(v) and v > 0 for v in values)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        ModelError: it is missing, too large, or not JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelError(f"{path.name} is larger than {MAX_JSON_BYTES >> 20} MiB")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path.name} is not valid JSON") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path.name} must hold a JSON object")
    return value
