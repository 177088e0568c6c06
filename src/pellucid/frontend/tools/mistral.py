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
    Tool,
    compact_json,
    random_id,
)
from pellucid.frontend.tools.call import CallReader
from pellucid.frontend.tools.parser import JsonCallParser
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
        return prose_until(MARK, marker[MARK], "calls_behind")

    def call_id(self) -> str:
        return random_id("", 9)


class MistralParser(JsonCallParser):
    """Implements `ToolParser`."""

    def __init__(self) -> None:
        super().__init__(self._read_prose)
        self._listed = False  # within [ ... ]

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
            self._begin_call(CallReader(self._num_calls))
        elif "{" in rest:
            head, _, _ = rest.partition("{")
            name = head.partition("[")[0].strip()
            self._unread += self._text[: self._text.index("{")]
            self._text, self._listed = rest[len(head) :], False
            call = CallReader(self._num_calls)
            if name:
                call.scanner.begin_named(name)
            self._begin_call(call)
        return []

    def _behind_call(self) -> list[Piece]:
        """Behind a call: the next of the list or its end, where text may follow."""
        if not self._listed:
            self._step = self._read_prose
            return []
        rest = self._text.lstrip()
        if rest.startswith(","):
            self._text = rest[1:]
            self._begin_call(CallReader(self._num_calls))
        elif rest:
            self._text = rest.removeprefix("]")
            self._step = self._read_prose
        return []
