"""What clients of Anthropic's Messages API receive: whole, as events, or as an error."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec
from msgspec import UNSET, UnsetType

from pellucid.server.anthropic.protocol import (
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    TokenCountRequest,
    ToolUseBlock,
)

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]
AnswerBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(msgspec.Struct, kw_only=True):
    """A prompt has `input_tokens` and both kinds of cached ones; none is counted twice."""

    input_tokens: int
    cache_creation_input_tokens: int = 0  # nobody pays for what is kept
    cache_read_input_tokens: int
    output_tokens: int


class AnswerMessage(msgspec.Struct, tag="message", tag_field="type", kw_only=True):
    id: str
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TokenCount(msgspec.Struct):
    input_tokens: int


# ---- events of a stream, each with its type as its name


class MessageStart(msgspec.Struct, tag="message_start", tag_field="type"):
    message: AnswerMessage


class BlockStart(msgspec.Struct, tag="content_block_start", tag_field="type"):
    index: int
    content_block: AnswerBlock


class TextPiece(msgspec.Struct, tag="text_delta", tag_field="type"):
    text: str


class ThinkingPiece(msgspec.Struct, tag="thinking_delta", tag_field="type"):
    thinking: str


class SignaturePiece(msgspec.Struct, tag="signature_delta", tag_field="type"):
    signature: str


class InputPiece(msgspec.Struct, tag="input_json_delta", tag_field="type"):
    """Pieces of JSON, which make the input of a call together."""

    partial_json: str


Piece = TextPiece | ThinkingPiece | SignaturePiece | InputPiece


class BlockDelta(msgspec.Struct, tag="content_block_delta", tag_field="type"):
    index: int
    delta: Piece


class BlockStop(msgspec.Struct, tag="content_block_stop", tag_field="type"):
    index: int


class Stop(msgspec.Struct):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag="message_delta", tag_field="type"):
    delta: Stop
    usage: MessageUsage  # of the whole answer


class MessageStop(msgspec.Struct, tag="message_stop", tag_field="type"):
    pass


BlockEvent = BlockStart | BlockDelta | BlockStop
MessageEvent = MessageStart | BlockEvent | MessageDelta | MessageStop


# ---- errors


class ErrorDetails(msgspec.Struct):
    error_code: str
    unsupported: list[str]


class ErrorDescription(msgspec.Struct):
    type: str
    message: str
    details: ErrorDetails | UnsetType = UNSET


class MessagesError(msgspec.Struct, tag="error", tag_field="type"):
    """Body of every failure on these paths, and of the error event of a stream."""

    error: ErrorDescription
    request_id: str


SCHEMAS: tuple[type[msgspec.Struct], ...] = (
    MessagesRequest,
    TokenCountRequest,
    AnswerMessage,
    TokenCount,
    *get_args(MessageEvent),
    MessagesError,
)
