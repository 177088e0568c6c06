"""Llama 3's way: the whole answer is `{"name": "f", "parameters": {...}}`, several joined by `; `.

It may begin with the token `<|python_tag|>`. An object without a name and parameters is text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pellucid.frontend.tools.base import Marker, Piece, Tool, compact_json, random_id
from pellucid.frontend.tools.call import CallReader
from pellucid.frontend.tools.parser import JsonCallParser
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
        return prose_unless(("{", TAG), "calls")

    def call_id(self) -> str:
        return random_id("call_", 24)


class Llama3JsonParser(JsonCallParser):
    """Implements `ToolParser`."""

    def __init__(self) -> None:
        super().__init__(self._begin)

    def _begin(self) -> list[Piece]:
        """Decide by the first characters whether the answer is text."""
        rest = self._text.lstrip()
        if rest.startswith(TAG):
            self._text = rest = rest[len(TAG) :].lstrip()
            self._step = self._behind_call
        elif rest.startswith("{"):
            self._step = self._behind_call
        elif not TAG.startswith(rest):
            self._step = self._read_prose
        return []

    def _behind_call(self) -> list[Piece]:
        """Behind a call, or before the first: anything but another is text."""
        rest = self._text.lstrip(_BETWEEN if self._num_calls else None)
        if not rest:
            return []
        if rest.startswith("{"):
            self._text = rest
            self._begin_call(CallReader(self._num_calls, needs_arguments=True))
        else:
            self._step = self._read_prose
        return []
