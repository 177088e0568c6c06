"""An answer's parts as content blocks: as events while they come, and put together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET

from pellucid.server.anthropic.protocol import TextBlock, ThinkingBlock, ToolUseBlock
from pellucid.server.anthropic.responses import (
    AnswerBlock,
    BlockDelta,
    BlockEvent,
    BlockStart,
    BlockStop,
    InputPiece,
    Piece,
    SignaturePiece,
    TextPiece,
    ThinkingPiece,
)
from pellucid.server.responses import ChatDelta, ToolCallDelta

SIGNATURE = "pellucid"  # clients want one, and send it back; nothing depends on it


class Blocks:
    """The blocks of one answer: one for each stretch of thought or text, and one for each call.

    `shows_thoughts`: otherwise a block of thoughts has its signature alone.
    """

    def __init__(self, *, shows_thoughts: bool = True) -> None:
        self._shows_thoughts = shows_thoughts
        self._open: type[AnswerBlock] | None = None
        self._index = -1

    def push(self, part: ChatDelta) -> Iterator[BlockEvent]:
        """The events that `part` brings."""
        if part.reasoning:
            if self._open is not ThinkingBlock:
                yield from self._begin(ThinkingBlock(thinking="", signature=""))
            if self._shows_thoughts:
                yield self._delta(ThinkingPiece(part.reasoning))
        if part.content:
            if self._open is not TextBlock:
                yield from self._begin(TextBlock(text=""))
            yield self._delta(TextPiece(part.content))
        for call in part.tool_calls or ():
            yield from self._call(call)

    def finish(self) -> Iterator[BlockEvent]:
        """The end of the last block."""
        if self._open is ThinkingBlock:
            yield self._delta(SignaturePiece(SIGNATURE))
        if self._open is not None:
            yield BlockStop(self._index)
        self._open = None

    def _call(self, call: ToolCallDelta) -> Iterator[BlockEvent]:
        if call.id is not UNSET:
            yield from self._begin(
                ToolUseBlock(id=call.id, name=call.function.name or "", input={})
            )
        if call.function.arguments:
            yield self._delta(InputPiece(call.function.arguments))

    def _begin(self, block: AnswerBlock) -> Iterator[BlockEvent]:
        yield from self.finish()
        self._index += 1
        self._open = type(block)
        yield BlockStart(self._index, block)

    def _delta(self, piece: Piece) -> BlockDelta:
        return BlockDelta(self._index, piece)


def put_together(events: Iterable[BlockEvent]) -> list[AnswerBlock]:
    """The blocks that `events` build."""
    blocks: list[AnswerBlock] = []
    written = ""  # of the input of the call at hand
    for event in events:
        if isinstance(event, BlockStart):
            blocks.append(event.content_block)
            written = ""
            continue
        block = blocks[event.index]
        if isinstance(event, BlockStop):
            if isinstance(block, ToolUseBlock):
                block.input = _input(written)
        elif isinstance(event.delta, InputPiece):
            written += event.delta.partial_json
        elif isinstance(event.delta, TextPiece) and isinstance(block, TextBlock):
            block.text += event.delta.text
        elif isinstance(event.delta, ThinkingPiece) and isinstance(block, ThinkingBlock):
            block.thinking += event.delta.thinking
        elif isinstance(event.delta, SignaturePiece) and isinstance(block, ThinkingBlock):
            block.signature = event.delta.signature
    return blocks


def _input(text: str) -> dict[str, Any]:
    """The input of a call. One that was cut, or that no grammar held, may be no JSON.

    Then it is shown as Anthropic's documents advise clients to show such input to a model.
    """
    try:
        value = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": text}
