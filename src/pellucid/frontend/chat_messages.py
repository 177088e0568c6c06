"""Checks the messages of a chat and gives them the form that templates expect."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.errors import BadRequest

_ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of `messages` with plain text as content and tool arguments as objects.

    Text parts are joined by line breaks. `role` may be any word: which ones a model knows is for
    its template to say. Fields we do not know are handed on, as templates may use them.

    Raises:
        BadRequest: naming the message and field that is missing, of a wrong type or unsupported.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise _bad("messages must be a list")
    if not messages:
        raise _bad("messages must hold at least one message")
    return [_plain_message(f"messages[{i}]", m) for i, m in enumerate(messages)]


def _plain_message(where: str, message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise _bad(f"{where} must be an object")
    role = message.get("role")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise _bad(f"{where}.role must be a word, such as user")
    plain = dict(message)
    plain["content"] = _plain_content(f"{where}.content", message.get("content"))
    if message.get("tool_calls") is not None:
        plain["tool_calls"] = _plain_tool_calls(f"{where}.tool_calls", message["tool_calls"])
    elif plain["content"] is None:
        raise _bad(f"{where}.content is missing")
    return plain


def _plain_content(where: str, content: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise _bad(f"{where} must be a string or a list of parts")
    return "\n".join(_part_text(f"{where}[{i}]", part) for i, part in enumerate(content))


def _part_text(where: str, part: Any) -> str:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise _bad(f"{where} must be an object with a type")
    if part["type"] != "text":
        raise _bad(f"{where}: parts of type {part['type']!r} are not supported, only text")
    if not isinstance(part.get("text"), str):
        raise _bad(f"{where}.text must be a string")
    text: str = part["text"]
    return text


def _plain_tool_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise _bad(f"{where} must be a list")
    return [_plain_tool_call(f"{where}[{i}]", call) for i, call in enumerate(calls)]


def _plain_tool_call(where: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _bad(f"{where} must be an object with function.name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI sends the JSON text, templates want the object
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            raise _bad(f"{where}.function.arguments is not valid JSON") from None
    return {**call, "function": {**function, "arguments": arguments}}


def _bad(problem: str) -> BadRequest:
    return BadRequest(problem, param="messages")
