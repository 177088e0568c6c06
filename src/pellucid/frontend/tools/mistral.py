"""Mistral's way: `[TOOL_CALLS][{"name": "f", "arguments": {...}}, ...]`.

From its eleventh tokenizer on also `[TOOL_CALLS]f[ARGS]{...}`, the marker once per call. Its chat
templates accept call ids of exactly nine letters and digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pellucid.frontend.markers import split_at_marker
from pellucid.frontend.tools.base import (
    Marker,
    Piece,
    Prose,
    Tool,
    compact_json,
    random_id,
)
from pellucid.frontend.tools.call import CallReader
from pellucid.frontend.tools.rules import json_calls, prose_until

MARK, ARGS = "[TOOL_CALLS]", "[ARGS]"


class Mistral:
    """Implements `ToolFormat`."""

    markers = (MARK, ARGS)

    def parser(self) -> MistralParser:
        return MistralParser()

    def spell(self, calls: Sequence[tuple[str, Any]]) -> str:
        return MARK + compact_json([{"name": name, "arguments": args} for name, args in calls])

    def calls_rules(self, tools: Sequence[Tool], *, parallel: bool, marker: Marker) -> str:
        more = '(", " call)*' if parallel else ""
        return (
            f"calls: {marker[MARK]} calls_behind\n"
            f'calls_behind: "[" call {more} "]"\n' + json_calls(tools, "arguments")
        )

    def prose_rules(self, marker: Marker) -> str:
        return prose_until(marker[MARK], "calls_behind")

    def call_id(self) -> str:
        return random_id("", 9)


class MistralParser:
    """Implements `ToolParser`."""

    def __init__(self) -> None:
        self._text = ""
        self._prose = Prose()
        self._call: CallReader | None = None
        self._num_calls = 0
        self._unread = ""  # since the marker, for a text that turns out to hold no call
        self._listed = False  # within [ ... ]
        self._step = self._read_prose

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
        if self._call is not None:
            if not self._call.begun:
                pieces += self._prose.say(self._unread + self._call.raw)
        elif self._step in (self._read_prose, self._read_opening):
            pieces += self._prose.say(self._unread + self._text)
        return pieces + self._prose.finish()

    def _read_prose(self) -> list[Piece]:
        said, behind = split_at_marker(self._text, MARK)
        if behind is None:
            self._text = self._text[len(said) :]
        else:
            self._text, self._unread = behind, MARK
            self._step = self._read_opening
        return self._prose.say(said) if said else []

    def _read_opening(self) -> list[Piece]:
        """What follows the marker: a list, or a function's name up to its arguments."""
        rest = self._text.lstrip()
        if rest.startswith("["):
            self._unread += self._text[: len(self._text) - len(rest) + 1]
            self._text, self._listed = rest[1:], True
            self._begin_call()
        elif "{" in rest:
            head, _, _ = rest.partition("{")
            name = head.partition("[")[0].strip()
            self._unread += self._text[: self._text.index("{")]
            self._text, self._listed = rest[len(head) :], False
            self._begin_call(name)
        return []

    def _begin_call(self, name: str = "") -> None:
        self._call = CallReader(self._num_calls)
        if name:
            self._call.scanner.begin_named(name)
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
            self._step = self._skip if call.scanner.failed else self._read_behind
        if call.refused:
            self._step = self._read_prose
            unread, self._unread = self._unread, ""
            return self._prose.say(unread + call.raw)
        return pieces

    def _read_behind(self) -> list[Piece]:
        """Behind a call: the next of the list or its end, where text may follow."""
        if not self._listed:
            self._step = self._read_prose
            return []
        rest = self._text.lstrip()
        if rest.startswith(","):
            self._text = rest[1:]
            self._begin_call()
        elif rest:
            self._text = rest.removeprefix("]")
            self._step = self._read_prose
        return []

    def _skip(self) -> list[Piece]:
        """Arguments that went wrong once the call was announced: what follows belongs to them."""
        self._text = ""
        return []
