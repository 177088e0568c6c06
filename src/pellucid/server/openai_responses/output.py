"""The items of one answer as they grow, and the events that tell of it.

reasoning, message and function_call follow one another; one is open at a time. Of each the events
are: item added, (part added,) deltas, done, (part done,) item done.
"""

from __future__ import annotations

import uuid
from bisect import bisect_left
from collections.abc import Callable

from pellucid.frontend.outputs import Delta
from pellucid.server.answer_parts import AnswerParts
from pellucid.server.logprobs import chat_logprobs
from pellucid.server.openai_responses.objects import (
    ArgumentsDelta,
    ArgumentsDone,
    DeltaLogprob,
    DeltaTopLogprob,
    Event,
    ItemAdded,
    ItemDone,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputTextPart,
    Part,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ReasoningPart,
    TextDelta,
    TextDone,
)
from pellucid.server.openai_responses.protocol import Status
from pellucid.server.responses import ChatLogprob, ToolCallDelta

Tell = Callable[[Event], None]


class Output:
    """Takes an answer's deltas; the last one, which has a finish_reason, closes the last item.

    `tell` is called with each event at once: the items in it go on growing.
    """

    def __init__(self, parts: AnswerParts, tell: Tell, *, shows_end: bool = False) -> None:
        self.items: list[OutputItem] = []
        self._parts = parts
        self._tell = tell
        self._shows_end = shows_end  # the token that ends the answer is part of its text
        self._num_tokens = 0
        self._logprobs: list[ChatLogprob] = []  # of tokens whose text did not come yet

    def push(self, delta: Delta) -> None:
        shown = self._parts.push(delta)
        self._take_logprobs(delta)
        for place, part in enumerate(shown):
            if part.reasoning:
                self._think(part.reasoning)
            if part.content:
                called = any(later.tool_calls for later in shown[place:])
                self._say(part.content, self._logprobs_of(part.content if called else None))
            for call in part.tool_calls or ():
                self._call(call)
        if delta.finish_reason is not None:
            if not self.items:
                self._open_message()
            self._close("completed" if delta.finish_reason == "stop" else "incomplete")

    def cut(self) -> None:
        """Nothing will follow, and nobody is told."""
        if self.items and self.items[-1].status == "in_progress":
            self.items[-1].status = "incomplete"

    # ---- what an answer holds

    def _think(self, text: str) -> None:
        item = self._last
        if not isinstance(item, OutputReasoning):
            item = self._open_reasoning()
        item.content[0].text += text
        self._tell(ReasoningDelta(item_id=item.id, output_index=self._index, delta=text))

    def _say(self, text: str, logprobs: list[ChatLogprob]) -> None:
        item = self._last
        if not isinstance(item, OutputMessage):
            item = self._open_message()
        part = item.content[0]
        part.text += text
        part.logprobs += logprobs
        self._tell(
            TextDelta(
                item_id=item.id,
                output_index=self._index,
                delta=text,
                logprobs=_without_bytes(logprobs),
            )
        )

    def _call(self, call: ToolCallDelta) -> None:
        self._logprobs = []  # of its marker
        if call.id:
            name = call.function.name or ""
            self._open(OutputCall(id=_id("fc"), call_id=call.id, name=name, arguments=""))
        item, text = self._last, call.function.arguments
        assert isinstance(item, OutputCall)  # the first piece of a call has its id
        if text:
            item.arguments += text
            self._tell(ArgumentsDelta(item_id=item.id, output_index=self._index, delta=text))

    def _take_logprobs(self, delta: Delta) -> None:
        """Keep those of tokens that may be text: behind the thoughts, and not the end.

        Calls throw away what came before them, so text that a slow reader gets in one delta with
        the call before it has none.
        """
        self._num_tokens += len(delta.token_ids)
        if not delta.logprobs:
            return
        self._logprobs += chat_logprobs(delta.logprobs, as_ids=False).content
        first = self._num_tokens - len(self._logprobs)
        del self._logprobs[: max(0, self._parts.num_reasoning_tokens - first)]
        by_token = delta.finish_reason == "stop" and not isinstance(delta.stop_reason, str)
        if by_token and not self._shows_end:
            del self._logprobs[-1:]

    def _logprobs_of(self, text: str | None) -> list[ChatLogprob]:
        """Take those of the tokens that spell `text`; all that there are if it is None.

        A slow reader gets text and the call behind it at once.
        """
        count, kept = len(self._logprobs), self._logprobs
        if text is not None:
            length = len(text.strip())
            place = bisect_left(
                range(1, count), True, key=lambda n: len(_spelled(kept[:n])) >= length
            )
            count = place + 1
        self._logprobs = kept[count:]
        return kept[:count]

    # ---- items

    @property
    def _last(self) -> OutputItem | None:
        return self.items[-1] if self.items else None

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    def _open(self, item: OutputItem) -> None:
        self._close("completed")
        self.items.append(item)
        self._tell(ItemAdded(output_index=self._index, item=item))

    def _open_message(self) -> OutputMessage:
        item, part = OutputMessage(id=_id("msg"), content=[]), OutputTextPart(text="")
        self._open(item)
        item.content.append(part)
        self._tell(PartAdded(item_id=item.id, output_index=self._index, part=part))
        return item

    def _open_reasoning(self) -> OutputReasoning:
        item, part = OutputReasoning(id=_id("rs"), content=[]), ReasoningPart(text="")
        self._open(item)
        item.content.append(part)
        self._tell(PartAdded(item_id=item.id, output_index=self._index, part=part))
        return item

    def _close(self, status: Status) -> None:
        item, index = self._last, self._index
        if item is None:
            return
        if isinstance(item, OutputCall):
            self._tell(ArgumentsDone(item_id=item.id, output_index=index, arguments=item.arguments))
        else:
            self._close_part(item, index)
        item.status = status
        self._tell(ItemDone(output_index=index, item=item))

    def _close_part(self, item: OutputMessage | OutputReasoning, index: int) -> None:
        part: Part = item.content[0]
        if isinstance(part, ReasoningPart):
            self._tell(ReasoningDone(item_id=item.id, output_index=index, text=part.text))
        else:
            logprobs = _without_bytes(part.logprobs)
            self._tell(
                TextDone(item_id=item.id, output_index=index, text=part.text, logprobs=logprobs)
            )
        self._tell(PartDone(item_id=item.id, output_index=index, part=part))


def _spelled(entries: list[ChatLogprob]) -> str:
    text = b"".join(bytes(entry.bytes or ()) for entry in entries)
    return text.decode(errors="replace").strip()


def _without_bytes(entries: list[ChatLogprob]) -> list[DeltaLogprob]:
    return [
        DeltaLogprob(
            entry.token,
            entry.logprob,
            [DeltaTopLogprob(top.token, top.logprob) for top in entry.top_logprobs],
        )
        for entry in entries
    ]


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
