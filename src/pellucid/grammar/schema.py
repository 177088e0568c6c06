"""What a JSON schema may not ask, because the answer would not be certain to keep it.

llguidance refuses most of what it cannot do by itself. Here is the rest: what it accepts but may
break, and its own switches, which would let a schema turn the checks off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pellucid.grammar.errors import GrammarError

MAX_DEPTH = 64
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


def check_schema(schema: Any) -> None:
    """Raise GrammarError if `schema`, decoded JSON, asks for what cannot be kept."""
    if not isinstance(schema, (bool, Mapping)):
        raise GrammarError("a JSON schema is an object or a boolean")
    open_schemas: list[tuple[str, Any, int]] = [("", schema, 0)]
    while open_schemas:
        path, part, depth = open_schemas.pop()
        if depth > MAX_DEPTH:
            raise GrammarError(f"the schema is nested deeper than {MAX_DEPTH} levels")
        if isinstance(part, Mapping):
            _check_keywords(path, part)
            open_schemas += [(where, sub, depth + 1) for where, sub in _children(path, part)]


def _children(path: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in _MAPS:
        value = schema.get(key)
        if isinstance(value, Mapping):
            yield from ((f"{path}/{key}/{name}", sub) for name, sub in value.items())
    for key in _LISTS:
        value = schema.get(key)
        if isinstance(value, list):
            yield from ((f"{path}/{key}/{i}", sub) for i, sub in enumerate(value))
    yield from ((f"{path}/{key}", schema[key]) for key in _SINGLE if key in schema)


def _check_keywords(path: str, schema: Mapping[str, Any]) -> None:
    where = f" (at {path})" if path else ""
    if "x-guidance" in schema:
        raise GrammarError(f"x-guidance is not supported{where}")
    if isinstance(schema.get("items"), list):
        raise GrammarError(f"items must be a schema; prefixItems takes a list{where}")
    for key in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(schema.get(key), bool):
            raise GrammarError(f"{key} must be a number{where}")
    _check_object(where, schema)


def _check_object(where: str, schema: Mapping[str, Any]) -> None:
    properties = schema.get("properties")
    required = schema.get("required")
    names = set(properties) if isinstance(properties, Mapping) else set()
    names |= {n for n in required if isinstance(n, str)} if isinstance(required, list) else set()
    least = schema.get("minProperties")
    # Names outside `properties` may repeat, and then count as one.
    if isinstance(least, int) and least > len(names) + 1:
        raise GrammarError(
            f"minProperties must not ask for more than one name beyond those listed{where}"
        )
    patterns = schema.get("patternProperties")
    for pattern in patterns if isinstance(patterns, Mapping) else ():
        try:
            both = sorted(name for name in names if re.search(pattern, name))
        except re.error as error:
            raise GrammarError(f"patternProperties {pattern!r}: {error}{where}") from None
        if both:  # only the schema in `properties` would be kept
            raise GrammarError(f"patternProperties {pattern!r} also matches {both[0]!r}{where}")
