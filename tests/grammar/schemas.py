"""JSON schemas of many kinds, made from a seed, as one would write them by hand."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]
WORDS = ("name", "size", "colour", "id", "tags", "owner", "count", "note", "kind", "state")
UNSUPPORTED: tuple[Schema, ...] = (
    {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    {"not": {"type": "string"}},
    {"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"type": "integer"}},
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"type": "object", "propertyNames": {"maxLength": 3}},
    {"type": "array", "contains": {"const": 3}},
    {"type": "string", "pattern": "^(?=a)b"},
    {"type": "string", "format": "no-such-format"},
    {"type": "object", "minProperties": 2},
    {"$ref": "https://example.com/schema.json"},
    {"$ref": "#"},
    {"type": "object", "properties": {"a": {"type": "string"}}, "patternProperties": {"^a": {}}},
    {"x-guidance": {"lenient": True}, "not": {}},
    {"oneOf": [{"type": "number"}, {"type": "integer"}]},
)


def schema(seed: int) -> Schema:
    """An object schema; equal seeds give equal schemas."""
    rng = random.Random(seed)
    whole = _object(rng, depth=2)
    if seed % 5 == 0:  # named parts, now and then a recursive one
        whole.pop("maxProperties", None)
        whole["properties"]["label"] = {"$ref": "#/$defs/label"}
        whole["required"] = ["label", *whole["required"]]
        whole["$defs"] = {"label": _string(rng)}
        if seed % 20 == 0:
            whole["properties"]["tree"] = {"$ref": "#/$defs/tree"}
            whole["$defs"]["tree"] = {
                "type": "object",
                "properties": {
                    "value": {"type": "integer", "minimum": 0, "maximum": 99},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]},
                },
                "required": ["value", "next"],
                "additionalProperties": False,
            }
    return whole


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(WORDS, rng.randint(1, 4))
    made: Schema = {
        "type": "object",
        "properties": {name: _value(rng, depth - 1) for name in names},
        "required": rng.sample(names, rng.randint(0, len(names))),
    }
    if rng.random() < 0.8:
        made["additionalProperties"] = False
    else:
        made["additionalProperties"] = {"type": "integer", "minimum": 0, "maximum": 9}
        made["maxProperties"] = len(names) + 1
        made["required"] = names  # or llguidance cannot count
    return made


def _value(rng: random.Random, depth: int) -> Schema:
    kinds = [_string, _number, _choice, _flag] + ([_array, _nested, _either] if depth > 0 else [])
    made = rng.choice(kinds)(rng) if depth <= 0 else _deep(rng, rng.choice(kinds), depth)
    if rng.random() < 0.3:
        made["description"] = "what it says"
    return made


def _deep(rng: random.Random, kind: Any, depth: int) -> Schema:
    made: Schema = kind(rng, depth) if kind in (_array, _nested, _either) else kind(rng)
    return made


def _string(rng: random.Random) -> Schema:
    return rng.choice(
        [
            {"type": "string", "maxLength": rng.randint(3, 20)},
            {"type": "string", "minLength": 2, "maxLength": 10},
            {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}$"},
            {"type": "string", "pattern": "^(north|south)(east|west)?$"},
            {"type": "string", "format": rng.choice(["date", "time", "date-time", "uuid", "ipv4"])},
        ]
    )


def _number(rng: random.Random) -> Schema:
    low = rng.randint(-50, 50)
    return rng.choice(
        [
            {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 1000)},
            {"type": "integer", "exclusiveMinimum": 0, "maximum": 9, "multipleOf": 3},
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "number", "exclusiveMinimum": low, "maximum": low + 7},
        ]
    )


def _choice(rng: random.Random) -> Schema:
    return rng.choice(
        [
            {"enum": ["red", "green", 'a "quote"', "über", 5, None]},
            {"const": rng.choice(["fixed", 3, True])},
            {"enum": [f"option {i}" for i in range(rng.randint(1, 9))]},
        ]
    )


def _flag(rng: random.Random) -> Schema:
    return rng.choice([{"type": "boolean"}, {"type": ["boolean", "null"]}])


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(0, 2)
    made = {"type": "array", "items": _value(rng, depth - 1), "maxItems": least + rng.randint(0, 3)}
    if least:
        made["minItems"] = least
    if rng.random() < 0.2:
        made |= {"prefixItems": [{"type": "boolean"}], "minItems": 1, "maxItems": 4}
    return made


def _nested(rng: random.Random, depth: int) -> Schema:
    return _object(rng, depth)


def _either(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_value(rng, depth - 1), {"type": "null"}]}
