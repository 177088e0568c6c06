"""Tools for models whose chat template does not know them: told in words, in the conversation.

The functions are described in the system message. Calls of earlier turns become text of the
assistant, in the way that the model shall write them, and results become messages of the user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.frontend.tools.base import ToolFormat, compact_json

_EXAMPLE = ("FUNCTION", {"ARGUMENT": "VALUE"})


def needs_words(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation holds calls or their results."""
    return any(m["role"] == "tool" or m.get("tool_calls") for m in messages)


def in_words(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    form: ToolFormat,
) -> list[dict[str, Any]]:
    """`messages` in which a template that knows no tools finds plain text only."""
    told = [_without_calls(message, form) for message in messages]
    told = _joined_results(told)
    if tools:
        words = instructions(tools, form)
        if told and told[0]["role"] in ("system", "developer"):
            told[0]["content"] = f"{_text(told[0]['content'])}\n\n{words}"
        else:
            told.insert(0, {"role": "system", "content": words})
    return told


def instructions(tools: Sequence[Mapping[str, Any]], form: ToolFormat) -> str:
    """What a model has to know to call functions."""
    listed = "\n".join(compact_json(tool["function"]) for tool in tools)
    return (
        "You can call these functions, each given with the JSON schema of its parameters:\n"
        f"<tools>\n{listed}\n</tools>\n"
        "Call one when it helps to answer; otherwise answer in plain words. A call is written as\n"
        f"{form.spell([_EXAMPLE])}\n"
        "Its result then follows between <tool_response> and </tool_response>."
    )


def _without_calls(message: Mapping[str, Any], form: ToolFormat) -> dict[str, Any]:
    if message["role"] == "tool":
        text = _text(message["content"])
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    plain = {key: value for key, value in message.items() if key != "tool_calls"}
    if calls := message.get("tool_calls"):
        functions = [call["function"] for call in calls]
        spelled = form.spell([(f["name"], json.loads(f["arguments"] or "{}")) for f in functions])
        before = _text(message.get("content"))
        plain["content"] = f"{before}\n{spelled}" if before else spelled
    return plain


def _joined_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results in a row as one message: many templates insist that the roles alternate."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        last = joined[-1] if joined else {"role": "", "content": ""}
        if _is_result(message) and _is_result(last):
            last["content"] += "\n" + message["content"]
        else:
            joined.append(message)
    return joined


def _is_result(message: Mapping[str, Any]) -> bool:
    content = message["content"]
    return (
        message["role"] == "user"
        and isinstance(content, str)
        and content.startswith("<tool_response>\n")
    )


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part["text"] for part in content)
