"""What clients may send: OpenAI's names, vLLM's where OpenAI has none, and a few of our own.

A null means the default. Checked here are types, and bounds on what would otherwise not fit the
wire; ranges of sampling fields are `SamplingParams`' to check, and only told here, by `_told`. The
schemas of `/openapi.json` come from these structs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pellucid.structured_outputs import StructuredOutputs


def _told(**schema: float) -> Meta:
    """A range for the OpenAPI document alone."""
    return Meta(extra_json_schema=schema)


Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Index = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
ToolName = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
Name = Annotated[str, Meta(min_length=1, max_length=512)]
ReasoningEffort = Annotated[
    Literal["none", "minimal", "low", "medium", "high", "xhigh"],
    Meta(description="Whether to think; in degrees where the template knows reasoning_effort."),
]

# One array type per union is what msgspec decodes; `prompts_of` sorts the four forms apart.
Prompt = str | list[str | TokenId | list[TokenId]]


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Any request body."""

    @classmethod
    def prepare(cls, fields: dict[str, Any]) -> None:
        """Put a decoded body into the form that is checked, in place. Raises BadRequest.

        What clients leave out or send out of habit differs between APIs.
        """


class ModelRequest(Body):
    """Which model is to be loaded or unloaded."""

    model: Name


class LoadLora(Body):
    """A LoRA adapter that is to be served; vLLM's names."""

    lora_name: str
    lora_path: str  # in the folder of --allow-lora-updates


class UnloadLora(Body):
    """A LoRA adapter that is to be served no more."""

    lora_name: str


class StreamPadding(Body):
    """What OpenAI may add to the pieces of a stream, to hide their lengths."""

    include_obfuscation: Annotated[bool | None, Meta(description="Only false.")] = None


class StreamOptions(StreamPadding):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class TextFormat(Body, tag="text", tag_field="type"):
    """No form at all."""


class JsonObjectFormat(Body, tag="json_object", tag_field="type"):
    """Any JSON object."""


class NamedSchema(Body, kw_only=True):
    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: Annotated[bool | None, Meta(description="The schema is kept in any case.")] = None


class JsonSchemaFormat(Body, tag="json_schema", tag_field="type", kw_only=True):
    json_schema: NamedSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class RequestFields(Body):
    """What may be said of any request that goes to the engine."""

    priority: Annotated[
        Int64 | None, Meta(description="Smaller goes first; needs the priority policy.")
    ] = None
    request_id: Name | None = None
    cache_salt: Annotated[
        Name | None, Meta(description="Only requests of equal salt share cached prefixes.")
    ] = None
    timeout: Annotated[
        Annotated[float, _told(exclusiveMinimum=0)] | None,
        Meta(description="Seconds after which the request ends with an error."),
    ] = None
    user: Name | None = None
    cache: Annotated[
        bool | None, Meta(description="false: neither look for nor keep a cached answer.")
    ] = None


class EngineFields(RequestFields):
    """What every generating route takes, whichever API it belongs to."""

    min_tokens: Annotated[Int32, _told(minimum=0)] | None = None
    temperature: Annotated[float, _told(minimum=0, maximum=2)] | None = None
    top_p: Annotated[float, _told(exclusiveMinimum=0, maximum=1)] | None = None
    top_k: Annotated[Int32, _told(minimum=-1)] | None = None
    min_p: Annotated[float, _told(minimum=0, maximum=1)] | None = None
    presence_penalty: Annotated[float, _told(minimum=-2, maximum=2)] | None = None
    frequency_penalty: Annotated[float, _told(minimum=-2, maximum=2)] | None = None
    repetition_penalty: Annotated[float, _told(minimum=1e-6, maximum=1e6)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    seed: Int64 | None = None
    logit_bias: dict[Int32, Annotated[float, _told(minimum=-100, maximum=100)]] | None = None
    allowed_token_ids: list[TokenId] | None = None
    bad_words: list[str] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = None
    safety_identifier: Annotated[Name | None, Meta(description="OpenAI's newer user.")] = None
    prompt_cache_key: Annotated[
        Name | None, Meta(description="Accepted: equal prefixes are found without it.")
    ] = None


class SamplingFields(EngineFields):
    """What every generating route of OpenAI's older APIs, and of our own, understands."""

    model: str | None = None
    n: Annotated[Int32, _told(minimum=1)] | None = None
    max_tokens: Annotated[Int32, _told(minimum=0)] | None = None  # 0: see `scores_only`
    response_format: ResponseFormat | None = None
    guided_json: str | dict[str, Any] | None = None  # these four: older names of vLLM
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    truncate_prompt_tokens: Int32 | None = None
    add_special_tokens: bool | None = None
    metadata: Annotated[
        dict[str, str] | None, Meta(description="The caller's own notes; not interpreted.")
    ] = None


class OpenAIFields(SamplingFields):
    """What chat and completions share beyond that."""

    echo: bool | None = None
    prompt_logprobs: Annotated[Int32, _told(minimum=-1)] | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None


class TextPart(Body, tag="text", tag_field="type"):
    text: str


class FunctionCall(Body, kw_only=True):
    name: ToolName
    arguments: str


class MessageToolCall(Body, tag="function", tag_field="type", kw_only=True):
    """A call of an earlier turn."""

    function: FunctionCall
    id: Name | None = None
    index: Index | None = None  # clients that put streamed deltas together send it back


class Message(Body, kw_only=True, omit_defaults=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None  # may be null next to tool_calls
    name: Name | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: Name | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Function(Body, kw_only=True, omit_defaults=True):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Body, tag="function", tag_field="type", kw_only=True):
    function: Function


class ChosenFunction(Body, kw_only=True):
    name: ToolName


Tools = Annotated[list[FunctionTool], Meta(min_length=1, max_length=128)]


class ToolChoice(Body, tag="function", tag_field="type", kw_only=True):
    """One function, which has to be called."""

    function: ChosenFunction


class AllowedFunction(Body, tag="function", tag_field="type", kw_only=True):
    function: ChosenFunction


class AllowedTools(Body, kw_only=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedFunction], Meta(min_length=1, max_length=128)]


class AllowedToolsChoice(Body, tag="allowed_tools", tag_field="type", kw_only=True):
    """Some of the tools, of which the others are only told."""

    allowed_tools: AllowedTools


class ChatRequest(OpenAIFields):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] | None = None
    tools: Tools | None = None
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | ToolChoice | AllowedToolsChoice | None,
        Meta(description="auto by default where there are tools."),
    ] = None
    parallel_tool_calls: bool | None = None
    include_reasoning: Annotated[
        bool | None, Meta(description="False leaves the thoughts out of the answer.")
    ] = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: ReasoningEffort | None = None
    prompt: Annotated[
        str | None, Meta(description="Short for messages with one message of the user.")
    ] = None
    max_completion_tokens: Annotated[Int32, _told(minimum=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Int32, _told(minimum=-1)] | None = None


class CompletionRequest(OpenAIFields, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: Prompt
    best_of: Annotated[Int32 | None, Meta(description="Only n itself is supported.")] = None
    logprobs: Annotated[Int32, _told(minimum=-1)] | None = None


class GenerateRequest(SamplingFields, kw_only=True):
    """Body of POST /generate and POST /generate_stream."""

    prompt: str | list[TokenId]


class TemplateFields(Body):
    """What a chat template makes a prompt of."""

    messages: list[Message] | None = None
    tools: Tools | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: ReasoningEffort | None = None


class ApplyTemplateRequest(TemplateFields):
    """Body of POST /apply-template."""

    model: str | None = None


class TokenizeRequest(TemplateFields):
    """Body of POST /tokenize: either a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body, kw_only=True):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: list[TokenId]
