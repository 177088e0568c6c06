"""What clients of the Responses API may send: OpenAI's names, and vLLM's where OpenAI has none.

Source: https://platform.openai.com/docs/api-reference/responses. Nothing is stored here, so what
refers to something stored (`previous_response_id`, `conversation`, `prompt`) is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from pellucid.server.neutral import drop
from pellucid.server.protocol import (
    Body,
    EngineFields,
    Int32,
    Name,
    ReasoningEffort,
    StreamPadding,
    ToolName,
)

LOGPROBS = "message.output_text.logprobs"

# Values that ask for nothing, as in `neutral.py`; all others are refused by name.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "access_programs": (None,),
    "background": (None, False),
    "conversation": (None,),
    "image": (None,),
    "personality": (None,),
    "previous_response_id": (None,),
    "prompt": (None,),
    "truncation": (None, "disabled"),
}
_TOOL_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "allowed_callers": (None, ["direct"]),
    "async": (None, False),
    "defer_loading": (None, False),
    "output_schema": (None,),
}
# What an answer of this or another server has, and clients send back.
_ITEM_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "async": (None, False),
    "caller": (None, {"type": "direct"}),
    "encrypted_content": (None, ""),
    "namespace": (None,),
    "phase": (None, "final_answer"),
}
_PART_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "prompt_cache_breakpoint": (None,),
}

Status = Literal["in_progress", "completed", "incomplete"]


# ---- the conversation


class InputText(Body, tag="input_text", tag_field="type"):
    text: str


class OutputText(Body, tag="output_text", tag_field="type"):
    """What the model said in an earlier turn."""

    text: str
    logprobs: Annotated[list[Any] | None, Meta(description="Of the answer sent back; unused.")] = (
        None
    )


class InputMessage(Body, tag="message", tag_field="type", kw_only=True):
    """A message; `type` may be left out."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText | OutputText]
    id: Name | None = None
    status: Status | None = None


class InputCall(Body, tag="function_call", tag_field="type", kw_only=True):
    """A call of an earlier turn."""

    call_id: Name
    name: ToolName
    arguments: str
    id: Name | None = None
    status: Status | None = None


class InputCallOutput(Body, tag="function_call_output", tag_field="type", kw_only=True):
    """What a call brought."""

    call_id: Name
    output: str | list[InputText]
    id: Name | None = None
    name: ToolName | None = None
    status: Status | None = None


class SummaryText(Body, tag="summary_text", tag_field="type"):
    text: str


class ReasoningText(Body, tag="reasoning_text", tag_field="type"):
    text: str


class InputReasoning(Body, tag="reasoning", tag_field="type", kw_only=True):
    """Thoughts of an earlier turn; their summary stands for them where they are missing."""

    id: Name | None = None
    summary: list[SummaryText] | None = None
    content: list[ReasoningText] | None = None
    status: Status | None = None


InputItem = InputMessage | InputCall | InputCallOutput | InputReasoning
Input = str | Annotated[list[InputItem], Meta(min_length=1)]


# ---- tools


class ResponsesTool(Body, tag="function", tag_field="type", kw_only=True):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Annotated[bool | None, Meta(description="true by default")] = None


class NamedFunction(Body, tag="function", tag_field="type", kw_only=True):
    """As `tool_choice`: the function that has to be called."""

    name: ToolName


class AllowedFunctions(Body, tag="allowed_tools", tag_field="type", kw_only=True):
    """Some of the tools, of which the others are only told."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Meta(min_length=1, max_length=128)]


ResponsesTools = Annotated[list[ResponsesTool], Meta(max_length=128)]
ResponsesToolChoice = Literal["none", "auto", "required"] | NamedFunction | AllowedFunctions


# ---- the answer


class PlainText(Body, tag="text", tag_field="type"):
    """No form at all."""


class AnyJson(Body, tag="json_object", tag_field="type"):
    """Any JSON object."""


class SchemaJson(Body, tag="json_schema", tag_field="type", kw_only=True):
    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: Annotated[bool | None, Meta(description="The schema is kept in any case.")] = None


class TextOptions(Body):
    format: PlainText | AnyJson | SchemaJson | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Body):
    effort: ReasoningEffort | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None


Key = Annotated[str, Meta(max_length=64)]
Note = Annotated[str, Meta(max_length=512)]


class ResponsesRequest(EngineFields, kw_only=True):
    """Body of POST /v1/responses."""

    model: str | None = None
    input: Input
    instructions: str | None = None
    tools: ResponsesTools | None = None
    tool_choice: ResponsesToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    max_output_tokens: Int32 | None = None
    max_tool_calls: Annotated[
        Annotated[int, Meta(ge=1, le=2**31 - 1)] | None,
        Meta(description="Counts calls of built-in tools, of which there are none."),
    ] = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: Int32 | None = None
    stream_options: StreamPadding | None = None
    metadata: Annotated[dict[Key, Note], Meta(max_length=16)] | None = None

    @classmethod
    def prepare(cls, fields: dict[str, Any]) -> None:
        prepare(fields)


class InputTokensRequest(Body, kw_only=True):
    """Body of POST /v1/responses/input_tokens: what of a ResponsesRequest is part of the prompt."""

    model: str | None = None
    input: Input
    instructions: str | None = None
    tools: ResponsesTools | None = None
    tool_choice: ResponsesToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @classmethod
    def prepare(cls, fields: dict[str, Any]) -> None:
        prepare(fields)


def prepare(fields: dict[str, Any]) -> None:
    """Drop neutral fields of a decoded body, and say of messages what they are, in place.

    Raises:
        BadRequest: a field asks for what is not supported.
    """
    drop(fields, _NEUTRAL, "")
    for path, tool in _objects(fields.get("tools"), "tools"):
        drop(tool, _TOOL_NEUTRAL, path)
    for path, item in _objects(fields.get("input"), "input"):
        drop(item, _ITEM_NEUTRAL, path)
        if item.get("type") is None and "role" in item:
            item["type"] = "message"
        for name in ("content", "output"):
            for part_path, part in _objects(item.get(name), path + name):
                drop(part, _PART_NEUTRAL, part_path)


def _objects(value: object, path: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects in a list, each with what leads to its fields."""
    items = value if isinstance(value, list) else []
    return [(f"{path}[{i}].", item) for i, item in enumerate(items) if isinstance(item, dict)]
