"""Request bodies: bounded while they are read, strict JSON, strict fields.

Every refusal names its place: `messages[0].content: expected str | array | null, got int`.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from pellucid.errors import BadRequest
from pellucid.server.errors import BodyTooLarge, BodyTooSlow, UnsupportedMediaType
from pellucid.server.neutral import drop_neutral
from pellucid.server.protocol import Body

T = TypeVar("T", bound=msgspec.Struct)

MAX_DEPTH = 256  # of arrays and objects in each other: much of what reads them recurses
MAX_SEARCH_BYTES = 1 << 20  # of a body that is searched for the number which spoils it

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_WHERE = re.compile(r"(?:`key` in )?`\$\.?(.*)`", re.DOTALL)


async def read(request: Request, body_type: type[T], max_bytes: int, seconds: float) -> T:
    """Read and check the body of `request`, which must arrive within `seconds`.

    Raises:
        BodyTooLarge, BodyTooSlow, UnsupportedMediaType, BadRequest: see the functions below.
    """
    _check_headers(request, max_bytes)
    try:
        async with asyncio.timeout(seconds):
            raw = await _read_bounded(request, max_bytes)
    except TimeoutError:
        raise BodyTooSlow(
            f"The body did not arrive within {seconds:g} s.", code="body_timeout"
        ) from None
    return parse(raw, body_type)


def parse(raw: bytes, body_type: type[T]) -> T:
    """Decode JSON into `body_type`, refusing fields that it does not have.

    Fields known from other servers are accepted as long as their value asks for nothing (see
    `neutral.py`).

    Raises:
        BadRequest: no JSON, no object, or a field that is unknown, unsupported or of a wrong type;
            `param` is its path.
    """
    fields = _decode(raw)
    drop_neutral(fields, body_type.__struct_fields__)
    if issubclass(body_type, Body):
        body_type.prepare(fields)
    try:
        return msgspec.convert(fields, body_type, str_keys=True)
    except msgspec.ValidationError as error:
        raise explain(error) from None


def explain(error: msgspec.ValidationError) -> BadRequest:
    """Turn msgspec's message into one that leads with the field's path."""
    reason, _, where = str(error).rpartition(" - at ")
    if not reason:
        reason, where = where, "`$`"
    match = _WHERE.fullmatch(where)
    path = match[1] if match else ""
    if unknown := _UNKNOWN.fullmatch(reason):
        path = f"{path}.{unknown[1]}" if path else unknown[1]
        return BadRequest(f"unknown field {path!r}", param=path, code="unknown_field")
    if missing := _MISSING.fullmatch(reason):
        path = f"{path}.{missing[1]}" if path else missing[1]
        return BadRequest(f"{path} is required", param=path, code="missing_field")
    if reason.startswith("Invalid value") and path.endswith(".type"):
        value = reason.removeprefix("Invalid value ")
        return BadRequest(f"{path}: {value} is not supported", param=path, code="unsupported_value")
    reason = reason.replace("`", "")
    return BadRequest(
        f"{path or 'body'}: {reason[:1].lower()}{reason[1:]}",
        param=path.removesuffix("[...]") or None,
        code="invalid_type" if reason.startswith("Expected") else "invalid_value",
    )


def _check_headers(request: Request, max_bytes: int) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(
            f"Content-Type must be application/json, got {media_type or 'none'}",
            param="Content-Type",
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UnsupportedMediaType(
            f"Content-Encoding {encoding!r} is not supported", param="Content-Encoding"
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)


async def _read_bounded(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:  # a chunked body declares no length
            raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body exceeds {max_bytes} bytes.", code="body_too_large")


def _decode(raw: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(raw)
    except UnicodeDecodeError:
        raise _bad_json("it is not UTF-8") from None
    except RecursionError:
        raise _bad_json("it is nested too deeply") from None
    except msgspec.DecodeError as error:
        if path := _not_finite(raw):
            raise _bad_json(f"{path} must be a finite number", path) from None
        reason = str(error)
        if isinstance(error, msgspec.ValidationError):  # an integer without end
            reason = reason.partition(" - at ")[0].lower()
        raise _bad_json(reason) from None
    if not isinstance(value, Mapping):
        raise BadRequest(
            f"The body must be a JSON object, not {_json_name(value)}.", code="invalid_type"
        )
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _is_deep(value):
        raise _bad_json("it is nested too deeply")
    return dict(value)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        values = (part.values() if isinstance(part, dict) else part for part in level)
        level = [child for parts in values for child in parts if isinstance(child, dict | list)]
    return bool(level)


def _bad_json(reason: str, param: str | None = None) -> BadRequest:
    return BadRequest(f"The body is not valid JSON: {reason}", param=param, code="invalid_json")


def _not_finite(raw: bytes) -> str | None:
    """The path of a number like NaN or 1e999, which Python's own parser lets pass."""
    if len(raw) > MAX_SEARCH_BYTES:
        return None
    try:
        return _path_to_infinity(json.loads(raw))
    except (ValueError, RecursionError):
        return None


def _path_to_infinity(value: object) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else ""
    entries: Iterable[tuple[str, object]] = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = ((f"[{i}]", part) for i, part in enumerate(value))
    for name, part in entries:
        if (rest := _path_to_infinity(part)) is not None:
            return f"{name}{'.' if rest[:1] not in ('', '[') else ''}{rest}"
    return None


def _json_name(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
