"""What clients of Anthropic's Messages API may send. A null means the default.

Source of names and ranges: https://docs.anthropic.com/en/api/messages. The blocks of an answer are
among them, since a client sends them back with the next turn.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from pellucid.server.protocol import Body, Name

CallId = Annotated[str, Meta(min_length=1, max_length=256)]
ClientToolName = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,128}$")]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Empty = Annotated[list[Any], Meta(max_length=0)]


# ---- content


class CacheControl(Body, tag="ephemeral", tag_field="type"):
    """Changes nothing: prefixes are cached without being asked for."""

    ttl: Literal["5m", "1h"] | None = None
    scope: Literal["global"] | None = None


class Block(Body, kw_only=True, omit_defaults=True):
    cache_control: CacheControl | None = None


class TextBlock(Block, tag="text", tag_field="type", kw_only=True):
    text: str
    citations: Empty | None = None


class ThinkingBlock(Body, tag="thinking", tag_field="type", kw_only=True):
    thinking: str
    signature: str | None = None  # of any server: nothing depends on it


class RedactedThinkingBlock(Body, tag="redacted_thinking", tag_field="type", kw_only=True):
    """Thoughts that Anthropic's servers alone can read: the model is not told of them."""

    data: str


class DirectCaller(Body, tag="direct", tag_field="type"):
    """The model itself called the tool."""


class ToolUseBlock(Block, tag="tool_use", tag_field="type", kw_only=True):
    id: CallId
    name: ClientToolName
    input: dict[str, Any]
    caller: DirectCaller | None = None
    toolset_name: None = None


class ToolResultBlock(Block, tag="tool_result", tag_field="type", kw_only=True):
    tool_use_id: CallId
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    toolset_name: None = None


AssistantBlock = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock


class UserTurn(Body, tag="user", tag_field="role", kw_only=True):
    content: str | list[TextBlock | ToolResultBlock]


class AssistantTurn(Body, tag="assistant", tag_field="role", kw_only=True):
    content: str | list[AssistantBlock]


class SystemTurn(Body, tag="system", tag_field="role", kw_only=True):
    content: str | list[TextBlock]


Turn = UserTurn | AssistantTurn | SystemTurn


# ---- tools


class ClientTool(Block, kw_only=True):
    name: ClientToolName
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: str | None = None
    strict: bool | None = None
    input_examples: list[dict[str, Any]] | None = None
    allowed_callers: Annotated[list[Literal["direct"]], Meta(min_length=1)] | None = None
    defer_loading: Literal[False] | None = None
    eager_input_streaming: Annotated[
        bool | None, Meta(description="Input is streamed as it is written in any case.")
    ] = None


class AutoChoice(Body, tag="auto", tag_field="type"):
    disable_parallel_tool_use: bool | None = None


class AnyChoice(Body, tag="any", tag_field="type"):
    disable_parallel_tool_use: bool | None = None


class NamedChoice(Body, tag="tool", tag_field="type", kw_only=True):
    name: ClientToolName
    disable_parallel_tool_use: bool | None = None


class NoChoice(Body, tag="none", tag_field="type"):
    """Answer in text."""


# ---- the rest


class ThinkingEnabled(Body, tag="enabled", tag_field="type", kw_only=True):
    budget_tokens: Annotated[
        Annotated[int, Meta(ge=1024, le=2**31 - 1)],
        Meta(description="After so many tokens the thoughts are ended."),
    ]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingAdaptive(Body, tag="adaptive", tag_field="type"):
    """As the model and its chat template do of themselves."""

    display: Literal["summarized", "omitted"] | None = None


class ThinkingDisabled(Body, tag="disabled", tag_field="type"):
    """No thoughts."""


class SchemaFormat(Body, tag="json_schema", tag_field="type", kw_only=True):
    schema: dict[str, Any]


class OutputConfig(Body):
    format: SchemaFormat | None = None
    effort: Literal["high"] | None = None  # the default; no other can be kept


class RequestMetadata(Body):
    user_id: Name | None = None


class TokenCountRequest(Body, kw_only=True):
    """Body of POST /v1/messages/count_tokens, and what a request for an answer begins with."""

    model: Name
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[ClientTool], Meta(max_length=128)] | None = None
    tool_choice: AutoChoice | AnyChoice | NamedChoice | NoChoice | None = None
    thinking: ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled | None = None
    output_config: OutputConfig | None = None
    output_format: Annotated[
        SchemaFormat | None, Meta(description="The older name of output_config.format.")
    ] = None
    cache_control: CacheControl | None = None


class MessagesRequest(TokenCountRequest, kw_only=True):
    """Body of POST /v1/messages."""

    max_tokens: Annotated[Count, Meta(description="0 fills the prefix cache and answers nothing.")]
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Count | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    metadata: RequestMetadata | None = None
