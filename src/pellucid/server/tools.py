"""Tools of a chat request: what the model is told, and what its answer may be.

tool_choice       tools in the prompt    the answer
none              no                     text
auto              yes                    text or calls; by a grammar if a tool is strict
required, named   yes                    calls, by a grammar
allowed_tools     yes, all               as auto or required, of those; always by a grammar
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pellucid.frontend.tools import detect_tool_format, tool_format
from pellucid.frontend.tools.base import Tool, ToolFormat
from pellucid.frontend.tools.prompt import in_words, needs_words
from pellucid.server.params import invalid
from pellucid.server.protocol import (
    AllowedToolsChoice,
    ChatRequest,
    Function,
    FunctionTool,
    ToolChoice,
)
from pellucid.server.service import Service
from pellucid.server.structured import structured_field
from pellucid.structured_outputs import StructuredOutputs

ANYTHING: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of one request, and how they may be used."""

    form: ToolFormat
    functions: Mapping[int, Function]  # those that may be called, by their place in the request
    forced: bool  # a call must come
    parallel: bool
    some: bool = False  # not all tools that the model is told of may be called

    @property
    def constrains(self) -> bool:
        """The answer follows a grammar."""
        strict = any(function.strict for function in self.functions.values())
        return self.forced or self.some or strict

    def tools(self) -> list[Tool]:
        """What a grammar holds the calls to: arguments by their schema where that is promised."""
        return [
            Tool(f.name, _held(f) if self.forced or f.strict else ANYTHING)
            for f in self.functions.values()
        ]


def _held(function: Function) -> dict[str, Any]:
    """The schema of its arguments, which are an object whether it says so or not."""
    return {**function.parameters, **ANYTHING} if function.parameters else ANYTHING


def form_of(service: Service) -> ToolFormat:
    """How this server's model writes calls."""
    name: str = service.config.tool_call_parser
    if name == "auto":
        name = detect_tool_format(service.llm.text.chat_template.sources.values())
    return tool_format(name)


def toolbox(service: Service, body: ChatRequest) -> Toolbox | None:
    """The tools that an answer may call; None if it may call none.

    Raises:
        BadRequest: tool_choice does not fit the tools, two tools share a name, or one does not take
            an object.
    """
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none"):
            raise invalid("tool_choice", "needs tools")
        return None
    functions = {i: tool.function for i, tool in enumerate(body.tools)}
    names = [function.name for function in functions.values()]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise invalid(f"tools[{i}].function.name", f"is given twice: {name}")
        kind = (functions[i].parameters or ANYTHING).get("type", "object")
        if kind != "object":
            raise invalid(f"tools[{i}].function.parameters.type", f"must be 'object', got {kind!r}")
    if choice == "none":
        return None
    forced, chosen = choice == "required", names
    if isinstance(choice, ToolChoice):
        forced, chosen = True, [choice.function.name]
    elif isinstance(choice, AllowedToolsChoice):
        forced = choice.allowed_tools.mode == "required"
        chosen = [tool.function.name for tool in choice.allowed_tools.tools]
    for name in chosen:
        if name not in names:
            raise invalid("tool_choice", f"names {name!r}, which is none of the tools")
    if forced and (field := _form_field(body)):
        raise invalid(field, "cannot be combined with a tool_choice that forces a call")
    may_be_called = {i: function for i, function in functions.items() if function.name in chosen}
    parallel = body.parallel_tool_calls is not False and not isinstance(choice, ToolChoice)
    some = len(may_be_called) < len(functions)
    return Toolbox(form_of(service), may_be_called, forced, parallel, some)


async def check_tools(service: Service, box: Toolbox) -> None:
    """Raises BadRequest naming the tool whose parameters a grammar cannot keep."""
    for place, tool in zip(box.functions, box.tools(), strict=True):
        if tool.parameters is not ANYTHING:
            wanted = StructuredOutputs(json=dict(tool.parameters))
            field = f"tools[{place}].function.parameters"
            await service.llm.check_structured(wanted, field)


def tool_messages(
    service: Service,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[FunctionTool] | None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The messages to render, and what else the template is given, so that the tools are told."""
    described: list[dict[str, Any]] = [msgspec.to_builtins(tool) for tool in tools or ()]
    for tool in described:
        tool["function"].setdefault("description", "")
        tool["function"].setdefault("parameters", {"type": "object", "properties": {}})
        tool["function"].pop("strict", None)
    template = service.llm.text.chat_template
    if template.knows_tools:
        return list(messages), {"tools": described} if described else {}
    if not described and not needs_words(messages):
        return list(messages), {}
    return in_words(messages, described, form_of(service)), {}


def _form_field(body: ChatRequest) -> str | None:
    field = structured_field(body)
    return None if field == "structured_outputs" and body.structured_outputs is None else field
