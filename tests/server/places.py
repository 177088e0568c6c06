"""Every place of every request body, found in the OpenAPI document, with a body that reaches it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from tests.server.live import MODEL

Schema = dict[str, Any]
PLACE = "the value belongs here"  # what a body holds at its place; see `Place.raw`

# What makes a body whole on each route; the place under test may replace any of it.
TURN = {"role": "user", "content": "Hi"}
BASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [TURN]},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 1},
    "/generate": {"prompt": "Hi", "max_tokens": 1},
    "/generate_stream": {"prompt": "Hi", "max_tokens": 1},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [5]},
    "/apply-template": {"messages": [TURN]},
    "/v1/embeddings": {"input": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"model": MODEL, "messages": [TURN], "max_tokens": 1},
    "/v1/models/load": {"model": MODEL},
    "/v1/models/unload": {"model": MODEL},
    "/v1/load_lora_adapter": {"lora_name": "mine", "lora_path": "mine"},
    "/v1/unload_lora_adapter": {"lora_name": "mine"},
    "/api/chat": {"model": MODEL, "messages": [TURN]},
    "/api/generate": {"model": MODEL, "prompt": "Hi"},
    "/api/embed": {"model": MODEL, "input": "Hi"},
    "/api/embeddings": {"model": MODEL, "prompt": "Hi"},
    "/api/show": {"model": MODEL},
    "/api/pull": {"model": MODEL},
}


PARTS = {"/v1/messages/count_tokens", "/v1/responses/input_tokens"}


@dataclass(frozen=True)
class Place:
    """Where a value of `kinds` ("integer", "object", ...) stands in the body of `route`.

    `path` is what errors call it. Entries of an object that may have any key share its path.
    `objects` are the smallest values that fit and take no further keys.
    """

    route: str
    path: str
    kinds: frozenset[str]
    body: Any
    objects: tuple[dict[str, Any], ...]

    def raw(self, value: str) -> bytes:
        """The body, with this JSON text at the place."""
        return msgspec.json.encode(self.body).replace(f'"{PLACE}"'.encode(), value.encode())

    def __str__(self) -> str:
        return f"{self.route}:{self.path}"


class Document:
    """Walks the bodies of one OpenAPI document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._schemas: dict[str, Schema] = document["components"]["schemas"]
        self.bodies: dict[str, Schema] = {
            path: operations["post"]["requestBody"]["content"]["application/json"]["schema"]
            for path, operations in document["paths"].items()
            if "post" in operations
        }

    def places(self) -> Iterator[Place]:
        """Routes with the same body count once, or with a part of another's."""
        routes = {str(schema): route for route, schema in self.bodies.items() if route not in PARTS}
        for route in routes.values():
            schema = self.bodies[route]
            yield from self._walk(route, schema, "", lambda value: value, BASES[route])

    def _walk(
        self,
        route: str,
        schema: Schema,
        path: str,
        around: Callable[[Any], Any],
        base: Mapping[str, Any] = MappingProxyType({}),
    ) -> Iterator[Place]:
        """Places at and below `path`; `around` puts a value there into a whole body.

        `base` is what an object has at `path` besides the one under test.
        """
        forms = list(self._forms(schema))
        kinds = frozenset(kind for form in forms for kind in _kinds(form))
        closed = [form for form in forms if form.get("additionalProperties") is False]
        objects = tuple(self._least(form) | dict(base) for form in closed)
        yield Place(route, path, kinds, around(PLACE), objects)
        for form in forms:
            least = self._least(form) if "properties" in form else {}
            for name, part in form.get("properties", {}).items():

                def inside(value: Any, name: str = name, least: Any = least) -> dict[str, Any]:
                    return around({**least, **base, name: value})

                below = f"{path}.{name}" if path else name
                yield from self._walk(route, part, below, inside)
            if isinstance(items := form.get("items"), dict):
                yield from self._walk(route, items, f"{path}[0]", lambda v: around([v]))
            if isinstance(values := form.get("additionalProperties"), dict) and values:
                yield from self._walk(route, values, path, lambda v: around({"7": v}))

    def _forms(self, schema: Schema) -> Iterator[Schema]:
        """The schemas of which one must hold, references followed."""
        if "$ref" in schema:
            yield from self._forms(self._schemas[schema["$ref"].rpartition("/")[2]])
        elif "anyOf" in schema:
            for form in schema["anyOf"]:
                yield from self._forms(form)
        else:
            yield schema

    def _least(self, schema: Schema) -> Any:
        """The smallest value that fits."""
        form = next(self._forms(schema))
        if "const" in form or "enum" in form:
            return form.get("const", form.get("enum", [None])[0])
        if form.get("type") == "object":
            properties = form.get("properties", {})
            return {name: self._least(properties[name]) for name in form.get("required", ())}
        if form.get("type") == "array":
            return [self._least(form.get("items", {}))] * form.get("minItems", 0)
        if form.get("type") in ("integer", "number"):
            return max(1, form.get("minimum", 1))
        return {"string": "f", "boolean": False}.get(form.get("type", ""))


def _kinds(form: Schema) -> list[str]:
    if "enum" in form:
        return ["string"]
    kind = form.get("type", "anything")
    return kind if isinstance(kind, list) else [kind]
