"""Hermes' way, also Qwen's: `<tool_call>{"name": "f", "arguments": {...}}</tool_call>`."""

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

BEGIN, END = "<tool_call>", "</tool_call>"


class Hermes:
    """Implements `ToolFormat`."""

    markers = (BEGIN, END)

    def parser(self) -> HermesParser:
        return HermesParser()

    def spell(self, calls: Sequence[tuple[str, Any]]) -> str:
        bodies = (compact_json({"name": name, "arguments": args}) for name, args in calls)
        return "\n".join(f"{BEGIN}\n{body}\n{END}" for body in bodies)

    def calls_rules(self, tools: Sequence[Tool], *, parallel: bool, marker: Marker) -> str:
        more = f'("\\n" {marker[BEGIN]} tagged)*' if parallel else ""
        return (
            f"calls: {marker[BEGIN]} calls_behind\n"
            f"calls_behind: tagged {more}\n"
            f'tagged: "\\n" call "\\n" {marker[END]}\n' + json_calls(tools, "arguments")
        )

    def prose_rules(self, marker: Marker) -> str:
        return prose_until(BEGIN, marker[BEGIN], "calls_behind")

    def call_id(self) -> str:
        return random_id("call_", 24)


class HermesParser(JsonCallParser):
    """Implements `ToolParser`. What stands between the markers and is no call remains text."""

    def __init__(self) -> None:
        super().__init__(self._read_prose)

    def _read_prose(self) -> list[Piece]:
        said, behind = split_at_marker(self._text, BEGIN)
        if behind is None:
            self._text = self._text[len(said) :]
        else:
            self._text, self._unread = behind, BEGIN
            self._begin_call(CallReader(self._num_calls))
        return self._prose.say(said) if said else []

    def _behind_call(self) -> list[Piece]:
        """The end marker, which may have been forgotten."""
        rest = self._text.lstrip()
        if rest.startswith(END):
            self._text = rest[len(END) :]
        if rest.startswith(END) or not END.startswith(rest):
            self._step = self._read_prose
        return []

    def _skip(self) -> list[Piece]:
        """Arguments that went wrong once the call was announced: what follows belongs to them."""
        skipped, behind = split_at_marker(self._text, END)
        if behind is None:
            self._text = self._text[len(skipped) :]
        else:
            self._text, self._step = behind, self._read_prose
        return []
