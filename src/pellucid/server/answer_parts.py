"""An answer's text as it is shown: thoughts, content and tool calls, whole or in deltas."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

from msgspec import UNSET

from pellucid.frontend.outputs import Delta
from pellucid.frontend.reasoning.base import END, ReasoningParser
from pellucid.frontend.tools.base import CallArguments, CallBegin, Content, Piece
from pellucid.server.answer_form import AnswerForm
from pellucid.server.responses import (
    CalledFunction,
    ChatDelta,
    ChatFinishReason,
    ChatMessage,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
)

Decode = Callable[[list[int]], str]  # special tokens included


class AnswerParts:
    """Reads one answer. `push` every delta's text; the last delta, which has a reason, ends it."""

    def __init__(self, form: AnswerForm, decode: Decode, *, show_reasoning: bool) -> None:
        box = form.toolbox
        self._form = None if box is None else box.form
        self._tools = None if box is None else box.form.parser()
        self._reasoning = None if form.opening is None else ReasoningParser(form.opening)
        self._decode = decode
        self._show_reasoning = show_reasoning
        # The answer's, as long as thoughts may follow.
        self._thinking_ids: list[int] | None = []
        self._most_calls = None if box is None or box.parallel else 1
        self.num_calls = 0
        self.num_reasoning_tokens = 0  # the markers of the thoughts are among them

    def push(self, delta: Delta) -> list[ChatDelta]:
        """What `delta` brings to be shown."""
        thought, text = self._split(delta.text, final=delta.finish_reason is not None)
        self._count(delta.token_ids)
        shown = []
        if thought and self._show_reasoning:
            shown.append(ChatDelta(reasoning=thought, reasoning_content=thought))
        pieces = self._pieces(text, final=delta.finish_reason is not None)
        shown += (part for piece in pieces if (part := self._shown(piece)) is not None)
        return shown

    def finish_reason(self, delta: Delta) -> ChatFinishReason | None:
        called = self.num_calls > 0 and delta.finish_reason == "stop"
        return "tool_calls" if called else delta.finish_reason

    def message(self, answer: Delta) -> ChatMessage:
        """The whole answer."""
        content, thought = "", ""
        calls: list[ToolCall] = []
        for part in self.push(answer):
            content += part.content or ""
            thought += part.reasoning or ""
            for call in part.tool_calls or ():
                if call.id is not UNSET:
                    function = CalledFunction(call.function.name or "", "")
                    calls.append(ToolCall(id=call.id, function=function))
                calls[-1].function.arguments += call.function.arguments or ""
        message = ChatMessage(content if content or not calls else None)
        if calls:
            message.tool_calls = calls
        if thought:
            message.reasoning = message.reasoning_content = thought
        return message

    def _split(self, text: str, *, final: bool) -> tuple[str, str]:
        if self._reasoning is None:
            return "", text
        thought, said = self._reasoning.push(text)
        if final:
            last_thought, last_said = self._reasoning.finish()
            thought, said = thought + last_thought, said + last_said
        return thought, said

    def _count(self, token_ids: list[int]) -> None:
        """Count the tokens of the thoughts; `token_ids` are those of the text just parsed.

        Text may come later than its tokens, and several tokens at once, so the token that ends the
        thoughts is found by what the tokens spell.
        """
        parser = self._reasoning
        if parser is None or self._thinking_ids is None:
            return
        self._thinking_ids += token_ids
        if not parser.is_over:
            self.num_reasoning_tokens = len(self._thinking_ids) if parser.has_begun else 0
            return
        if parser.has_begun:
            ids = self._thinking_ids
            counts = range(1, len(ids))  # all of them, if no fewer do
            place = bisect_left(counts, True, key=lambda count: END in self._decode(ids[:count]))
            self.num_reasoning_tokens = place + 1
        self._thinking_ids = None

    def _pieces(self, text: str, *, final: bool) -> Iterator[Piece]:
        if self._tools is None:
            if text:
                yield Content(text)
            return
        yield from self._tools.push(text)
        if final:
            yield from self._tools.finish()

    def _shown(self, piece: Piece) -> ChatDelta | None:
        if isinstance(piece, Content):
            return ChatDelta(content=piece.text)
        if self._most_calls is not None and piece.index >= self._most_calls:
            return None  # the request wants one call at most
        function = FunctionDelta()
        if isinstance(piece, CallArguments):
            function.arguments = piece.text
            return ChatDelta(tool_calls=[ToolCallDelta(piece.index, function)])
        return self._begin(piece, function)

    def _begin(self, piece: CallBegin, function: FunctionDelta) -> ChatDelta:
        assert self._form is not None  # whoever parses calls knows their form
        self.num_calls += 1
        function.name, function.arguments = piece.name, ""
        call = ToolCallDelta(piece.index, function, self._form.call_id(), "function")
        return ChatDelta(tool_calls=[call])
