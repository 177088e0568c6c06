"""What clients of the Responses API receive: a response, its items, and the events of a stream.

Source: https://platform.openai.com/docs/api-reference/responses/object and
https://platform.openai.com/docs/api-reference/responses-streaming.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pellucid.server.openai_responses.protocol import (
    InputTokensRequest,
    ResponsesRequest,
    ResponsesTool,
    ResponsesToolChoice,
    Status,
    TextOptions,
)
from pellucid.server.responses import ChatLogprob

# ---- items


class OutputTextPart(msgspec.Struct, tag="output_text", tag_field="type", kw_only=True):
    text: str
    annotations: list[Any] = []
    logprobs: list[ChatLogprob] = []  # empty unless asked for


class ReasoningPart(msgspec.Struct, tag="reasoning_text", tag_field="type", kw_only=True):
    text: str


class OutputMessage(msgspec.Struct, tag="message", tag_field="type", kw_only=True):
    id: str
    role: Literal["assistant"] = "assistant"
    status: Status = "in_progress"
    content: list[OutputTextPart]


class OutputReasoning(msgspec.Struct, tag="reasoning", tag_field="type", kw_only=True):
    """Thoughts; they are given themselves, and never as a summary."""

    id: str
    summary: list[Any] = []
    content: list[ReasoningPart]
    status: Status = "in_progress"


class OutputCall(msgspec.Struct, tag="function_call", tag_field="type", kw_only=True):
    id: str
    call_id: str
    name: str
    arguments: str  # JSON text, as the model wrote it
    status: Status = "in_progress"


OutputItem = OutputMessage | OutputReasoning | OutputCall
Part = OutputTextPart | ReasoningPart


# ---- the response


class InputTokensDetails(msgspec.Struct):
    cached_tokens: int
    cache_write_tokens: int  # of whole blocks, which later prompts may find


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class ResponsesUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct):
    reason: Literal["max_output_tokens"]


FailureCode = Literal["server_error", "invalid_prompt"]


class ResponseFailure(msgspec.Struct):
    code: FailureCode
    message: str


class EchoedReasoning(msgspec.Struct):
    effort: str | None
    summary: None = None


class ResponseObject(msgspec.Struct, kw_only=True):
    """A response. Nothing is stored: `store` is false whatever OpenAI's default is."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    background: bool = False
    completed_at: int | None = None
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    previous_response_id: None = None
    prompt_cache_key: str | None
    reasoning: EchoedReasoning
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool = False
    temperature: float
    text: TextOptions
    tool_choice: ResponsesToolChoice
    tools: list[ResponsesTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponsesUsage | None = None
    user: str | None
    metadata: dict[str, str]


class InputTokens(msgspec.Struct):
    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


# ---- events


class DeltaTopLogprob(msgspec.Struct):
    token: str
    logprob: float


class DeltaLogprob(msgspec.Struct):
    """A log probability in an event, which has no bytes."""

    token: str
    logprob: float
    top_logprobs: list[DeltaTopLogprob]


class Event(msgspec.Struct, tag_field="type", kw_only=True):
    """An event of a stream; `sequence_number` counts them from 0."""

    sequence_number: int = 0


class ResponseCreated(Event, tag="response.created", kw_only=True):
    response: ResponseObject


class ResponseInProgress(Event, tag="response.in_progress", kw_only=True):
    response: ResponseObject


class ResponseCompleted(Event, tag="response.completed", kw_only=True):
    response: ResponseObject


class ResponseIncomplete(Event, tag="response.incomplete", kw_only=True):
    response: ResponseObject


class ResponseFailed(Event, tag="response.failed", kw_only=True):
    response: ResponseObject


class ItemEvent(Event, kw_only=True):
    """About the item at `output_index`."""

    output_index: int


class ItemAdded(ItemEvent, tag="response.output_item.added", kw_only=True):
    item: OutputItem


class ItemDone(ItemEvent, tag="response.output_item.done", kw_only=True):
    item: OutputItem


class PartEvent(ItemEvent, kw_only=True):
    item_id: str
    content_index: int = 0  # items have one part


class PartAdded(PartEvent, tag="response.content_part.added", kw_only=True):
    part: Part


class PartDone(PartEvent, tag="response.content_part.done", kw_only=True):
    part: Part


class TextDelta(PartEvent, tag="response.output_text.delta", kw_only=True):
    delta: str
    logprobs: list[DeltaLogprob]


class TextDone(PartEvent, tag="response.output_text.done", kw_only=True):
    text: str
    logprobs: list[DeltaLogprob]


class ReasoningDelta(PartEvent, tag="response.reasoning_text.delta", kw_only=True):
    delta: str


class ReasoningDone(PartEvent, tag="response.reasoning_text.done", kw_only=True):
    text: str


class ArgumentsDelta(ItemEvent, tag="response.function_call_arguments.delta", kw_only=True):
    item_id: str
    delta: str


class ArgumentsDone(ItemEvent, tag="response.function_call_arguments.done", kw_only=True):
    item_id: str
    arguments: str


EVENTS: tuple[type[Event], ...] = (
    ResponseCreated,
    ResponseInProgress,
    ItemAdded,
    PartAdded,
    TextDelta,
    TextDone,
    ReasoningDelta,
    ReasoningDone,
    PartDone,
    ArgumentsDelta,
    ArgumentsDone,
    ItemDone,
    ResponseCompleted,
    ResponseIncomplete,
    ResponseFailed,
)

SCHEMAS: tuple[type[msgspec.Struct], ...] = (
    ResponsesRequest,
    InputTokensRequest,
    ResponseObject,
    InputTokens,
    *EVENTS,
)
