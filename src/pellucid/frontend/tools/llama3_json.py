"""Llama 3's way: the whole answer is `{"name": "f", "parameters": {...}}`, several joined by `; `.

It may begin with the token `<|python_tag|>`. An object without a name and parameters is text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pellucid.frontend.tools.base import Marker, Piece, Prose, Tool, compact_json, random_id
from pellucid.frontend.tools.call import CallReader
from pellucid.frontend.tools.rules import json_calls, prose_unless

TAG = "<|python_tag|>"
_BETWEEN = " \t\r\n;,"


class Llama3Json:
    """Implements `ToolFormat`."""

    markers = (TAG,)

    def parser(self) -> Llama3JsonParser:
        return Llama3JsonParser()

    def spell(self, calls: Sequence[tuple[str, Any]]) -> str:
        return "; ".join(compact_json({"name": name, "parameters": args}) for name, args in calls)

    def calls_rules(self, tools: Sequence[Tool], *, parallel: bool, marker: Marker) -> str:
        more = '("; " call)*' if parallel else ""
        return f"calls: call {more}\n" + json_calls(tools, "parameters")

    def prose_rules(self, marker: Marker) -> str:
        return prose_unless("{", "calls")

    def call_id(self) -> str:
        return random_id("call_", 24)


class Llama3JsonParser:
    """Implements `ToolParser`."""

    def __init__(self) -> None:
        self._text = ""
        self._prose = Prose()
        self._call: CallReader | None = None
        self._num_calls = 0
        self._step = self._begin

    def push(self, text: str) -> list[Piece]:
        self._text += text
        pieces: list[Piece] = []
        before = None
        while before != (self._step, self._text):
            before = self._step, self._text
            pieces += self._step()
        return pieces

    def finish(self) -> list[Piece]:
        pieces: list[Piece] = []
        if self._call is not None and not self._call.begun:
            pieces += self._prose.say(self._call.raw)
        elif self._step in (self._begin, self._read_prose):
            pieces += self._prose.say(self._text)
        return pieces + self._prose.finish()

    def _begin(self) -> list[Piece]:
        """Decide by the first characters whether the answer is text."""
        rest = self._text.lstrip()
        if rest.startswith(TAG):
            self._text = rest = rest[len(TAG) :].lstrip()
            self._step = self._between
        elif rest.startswith("{"):
            self._step = self._between
        elif not TAG.startswith(rest):
            self._step = self._read_prose
        return []

    def _between(self) -> list[Piece]:
        """Before a call; behind one, anything else is text again."""
        rest = self._text.lstrip(_BETWEEN if self._num_calls else None)
        if not rest:
            return []
        if rest.startswith("{"):
            self._text, self._call = rest, CallReader(self._num_calls, needs_arguments=True)
            self._step = self._read_call
        else:
            self._step = self._read_prose
        return []

    def _read_call(self) -> list[Piece]:
        call = self._call
        assert call is not None  # this step is only taken with one
        announced = call.begun
        pieces, self._text = call.feed(self._text)
        if call.begun and not announced:
            self._prose.call()
            self._num_calls += 1
        if call.over:
            self._call = None
            self._step = self._skip if call.scanner.failed else self._between
        if call.refused:
            self._step = self._read_prose
            return self._prose.say(call.raw)
        return pieces

    def _read_prose(self) -> list[Piece]:
        text, self._text = self._text, ""
        return self._prose.say(text) if text else []

    def _skip(self) -> list[Piece]:
        """Arguments that went wrong once the call was announced: what follows belongs to them."""
        self._text = ""
        return []
