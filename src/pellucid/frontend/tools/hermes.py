"""Hermes' way, also Qwen's: `<tool_call>{"name": "f", "arguments": {...}}</tool_call>`."""

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
        return prose_until(marker[BEGIN], "calls_behind")

    def call_id(self) -> str:
        return random_id("call_", 24)


class HermesParser:
    """Implements `ToolParser`. What stands between the markers and is no call remains text."""

    def __init__(self) -> None:
        self._text = ""  # read, but not yet decided
        self._prose = Prose()
        self._call: CallReader | None = None
        self._num_calls = 0
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
        if self._call is not None and not self._call.begun:
            pieces += self._prose.say(BEGIN + self._call.raw)
        elif self._step == self._read_prose:
            pieces += self._prose.say(self._text)
        return pieces + self._prose.finish()

    # Each step reads from `_text` what it can decide, and sets the next.

    def _read_prose(self) -> list[Piece]:
        said, behind = split_at_marker(self._text, BEGIN)
        if behind is None:
            self._text = self._text[len(said) :]
        else:
            self._text, self._call = behind, CallReader(self._num_calls)
            self._step = self._read_call
        return self._prose.say(said) if said else []

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
            self._step = self._skip_to_end if call.scanner.failed else self._read_end
        if call.refused:
            self._step = self._read_prose
            return self._prose.say(BEGIN + call.raw)
        return pieces

    def _read_end(self) -> list[Piece]:
        """The end marker, which may have been forgotten."""
        rest = self._text.lstrip()
        if rest.startswith(END):
            self._text = rest[len(END) :]
        if rest.startswith(END) or not END.startswith(rest):
            self._step = self._read_prose
        return []

    def _skip_to_end(self) -> list[Piece]:
        """Arguments that went wrong once the call was announced: what follows belongs to them."""
        skipped, behind = split_at_marker(self._text, END)
        if behind is None:
            self._text = self._text[len(skipped) :]
        else:
            self._text, self._step = behind, self._read_prose
        return []
