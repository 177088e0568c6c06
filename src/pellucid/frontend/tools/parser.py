"""What the parsers of tool calls share: the loop over their steps, and a call of JSON."""

from __future__ import annotations

from collections.abc import Callable

from pellucid.frontend.tools.base import Piece, Prose
from pellucid.frontend.tools.call import CallReader

Step = Callable[[], list[Piece]]


class SteppingParser:
    """A `ToolParser` in steps: each reads from `_text` what it can decide, and sets the next."""

    def __init__(self, first: Step) -> None:
        self._text = ""  # read, but not yet decided
        self._unread = ""  # decided to belong to calls, for a text that turns out to hold none
        self._prose = Prose()
        self._num_calls = 0
        self._step = first

    def push(self, text: str) -> list[Piece]:
        self._text += text
        pieces: list[Piece] = []
        before = None
        while before != (self._step, self._text):
            before = self._step, self._text
            pieces += self._step()
        return pieces

    def finish(self) -> list[Piece]:
        pieces = self._prose.say(self._leftover())
        return pieces + self._prose.finish()

    def _leftover(self) -> str:
        """What was held back and is text after all, now that nothing follows."""
        raise NotImplementedError

    def _read_prose(self) -> list[Piece]:
        """Text to the end; formats whose calls may follow text look for them here."""
        text, self._text = self._text, ""
        return self._prose.say(text) if text else []


class JsonCallParser(SteppingParser):
    """Calls that are JSON objects. What turns out to be no call remains text."""

    def __init__(self, first: Step) -> None:
        super().__init__(first)
        self._call: CallReader | None = None

    def _behind_call(self) -> list[Piece]:
        """The step behind a complete call."""
        raise NotImplementedError

    def _begin_call(self, call: CallReader) -> None:
        self._call = call
        self._step = self._read_call

    def _read_call(self) -> list[Piece]:
        call = self._call
        assert call is not None  # this step is only taken with one
        announced = call.begun
        pieces, self._text = call.feed(self._text)
        if call.begun and not announced:
            self._prose.call()
            self._num_calls += 1
            self._unread = ""
        if call.over:
            self._call = None
            self._step = self._skip if call.scanner.failed else self._behind_call
        if call.refused:
            self._step = self._read_prose
            unread, self._unread = self._unread, ""
            return self._prose.say(unread + call.raw)
        return pieces

    def _skip(self) -> list[Piece]:
        """Arguments that went wrong once the call was announced: what follows belongs to them."""
        self._text = ""
        return []

    def _leftover(self) -> str:
        if self._call is not None:
            return "" if self._call.begun else self._unread + self._call.raw
        undecided = self._step not in (self._behind_call, self._skip)
        return self._unread + self._text if undecided else ""
