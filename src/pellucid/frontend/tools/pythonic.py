"""Llama 3.2's and 4's other way: the whole answer is a list of Python calls, `[f(x=1), g()]`.

A call is read as Python's own parser sees it, and only literals count: nothing is ever executed.
JSON's true, false and null are understood as well.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.frontend.tools.base import (
    CallArguments,
    CallBegin,
    Marker,
    Piece,
    Tool,
    compact_json,
    random_id,
)
from pellucid.frontend.tools.parser import SteppingParser
from pellucid.frontend.tools.rules import alternatives, prose_unless
from pellucid.grammar.errors import GrammarError
from pellucid.grammar.source import json_rule, literal

MAX_CALL_CHARS = 1 << 16
_WORDS = {"true": True, "false": False, "null": None}


class Pythonic:
    """Implements `ToolFormat`."""

    markers: tuple[str, ...] = ()

    def parser(self) -> PythonicParser:
        return PythonicParser()

    def spell(self, calls: Sequence[tuple[str, Any]]) -> str:
        return "[" + ", ".join(_spelled(name, args) for name, args in calls) + "]"

    def calls_rules(self, tools: Sequence[Tool], *, parallel: bool, marker: Marker) -> str:
        more = '(", " call)*' if parallel else ""
        lines = [f'calls: "[" call {more} "]"', "call: " + alternatives("call_", len(tools))]
        for i, tool in enumerate(tools):
            lines += _call_rules(i, tool)
        return "\n".join(lines) + "\n"

    def prose_rules(self, marker: Marker) -> str:
        return prose_unless(("[",), "calls")

    def call_id(self) -> str:
        return random_id("call_", 24)


class PythonicParser(SteppingParser):
    """Implements `ToolParser`. A call comes out when it is complete, in one piece."""

    def __init__(self) -> None:
        super().__init__(self._begin)
        self._call = _Call()

    def _leftover(self) -> str:
        return "" if self._num_calls else self._unread + self._text

    def _begin(self) -> list[Piece]:
        rest = self._text.lstrip()
        if rest.startswith("["):
            self._unread = self._text[: len(self._text) - len(rest) + 1]
            self._text = rest[1:]
            self._step = self._read_list
        elif rest:
            self._step = self._read_prose
        return []

    def _read_list(self) -> list[Piece]:
        """Calls and what separates them, up to the ]."""
        pieces: list[Piece] = []
        for at, char in enumerate(self._text, start=1):
            self._unread += "" if self._num_calls else char
            if not self._call.text and char in " \t\r\n,":
                continue
            if not self._call.text and char == "]":
                return pieces + self._leave(at)
            self._call.feed(char)
            if not self._call.complete:
                continue
            read = _read_call(self._call.text)
            if read is None:
                return pieces + self._leave(at)
            self._call = _Call()
            self._prose.call()
            name, arguments = read
            pieces += [
                CallBegin(self._num_calls, name),
                CallArguments(self._num_calls, compact_json(arguments)),
            ]
            self._num_calls += 1
        self._text = ""
        return pieces

    def _leave(self, at: int) -> list[Piece]:
        """The list ends before `at`; one without a call is text."""
        self._text, self._step = self._text[at:], self._read_prose
        unread, self._unread = self._unread, ""
        return [] if self._num_calls else self._prose.say(unread)


class _Call:
    """Finds the end of a call, by its brackets outside of strings."""

    def __init__(self) -> None:
        self.text = ""
        self.complete = False  # or too long, or none at all: to be parsed, whatever it is
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def feed(self, char: str) -> None:
        self.text += char
        if self._quote:
            if char == self._quote and not self._escaped:
                self._quote = ""
            self._escaped = char == "\\" and not self._escaped
        elif char in "\"'" and self._depth:
            self._quote, self._escaped = char, False
        elif char in "([{":
            self._depth += 1
        elif char in ")]}":
            self._depth -= 1
            self.complete = self._depth <= 0
        elif not self._depth and not (char.isalnum() or char in "_.-"):
            self.complete = True
        self.complete = self.complete or len(self.text) > MAX_CALL_CHARS


def _read_call(text: str) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments; None for anything but a call with literal keyword arguments."""
    name, bracket, rest = text.partition("(")
    try:
        # The name may hold what Python's names may not.
        call = ast.parse(f"f{bracket}{rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not name:
            return None
        return name, {word.arg or "": _value(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Any:
    """A literal as JSON has it. Raises ValueError for anything else."""
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_value(key) if key is not None else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise ValueError("a key that is no text")
        return dict(zip(keys, map(_value, node.values), strict=True))
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | bool | None):
        raise ValueError("no JSON value")
    return value


def _spelled(name: str, arguments: Any) -> str:
    pairs = arguments.items() if isinstance(arguments, Mapping) else ()
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in pairs)})"


def _call_rules(index: int, tool: Tool) -> list[str]:
    """Rules for one function: its required arguments, then the others, in the schema's order.

    A schema that names none leaves them free.
    """
    schema = tool.parameters
    properties = schema.get("properties", {})
    plain = {"type", "properties", "required", "additionalProperties", "$defs", "title"}
    if not isinstance(properties, Mapping) or schema.keys() - plain - {"description", "$schema"}:
        raise GrammarError(f"{tool.name}: only an object of properties can be called this way")
    others = schema.get("additionalProperties", True)
    if not properties and others is not False:
        return [
            f"value_{index}: {json_rule(others)}",
            f'item_{index}: /[A-Za-z_][A-Za-z0-9_]*/ "=" value_{index}',
            f'call_{index}: {literal(tool.name + "(")} (item_{index} (", " item_{index})*)? ")"',
        ]
    required = [name for name in properties if name in schema.get("required", ())]
    optional = [name for name in properties if name not in required]
    lines, numbers = [], {name: i for i, name in enumerate(properties)}
    for name, i in numbers.items():
        value = {**properties[name], **{k: schema[k] for k in ("$defs",) if k in schema}}
        lines.append(f"value_{index}_{i}: {json_rule(value)}")
        lines.append(f"item_{index}_{i}: {literal(name + '=')} value_{index}_{i}")
    items = [f"item_{index}_{numbers[name]}" for name in required]
    rest = [f"item_{index}_{numbers[name]}" for name in optional]
    if items:
        body = ' ", " '.join(items) + "".join(f' (", " {item})?' for item in rest)
    else:  # any of the optional ones may be the first
        runs = [
            item + "".join(f' (", " {later})?' for later in rest[i + 1 :])
            for i, item in enumerate(rest)
        ]
        body = f"({' | '.join(runs)})?" if runs else ""
    lines.append(f'call_{index}: {literal(tool.name + "(")} {body} ")"')
    return lines
