"""What a way of writing tool calls has to provide, and what all of them share."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Marker = Mapping[str, str]  # text of a marker -> how a grammar's rule spells it


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called; `parameters` is the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call begins; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of the JSON of a call's arguments."""

    index: int
    text: str


Piece = Content | CallBegin | CallArguments


class ToolParser(Protocol):
    """Takes one answer's text in pieces; how it is cut does not change what comes out in all."""

    def push(self, text: str) -> list[Piece]: ...

    def finish(self) -> list[Piece]:
        """No text will follow."""
        ...


class ToolFormat(Protocol):
    """One way of writing calls.

    Attributes:
        markers: texts around calls, which some vocabularies have as special tokens.
    """

    markers: tuple[str, ...]

    def parser(self) -> ToolParser: ...

    def spell(self, calls: Sequence[tuple[str, Any]]) -> str:
        """Calls, as (name, arguments), the way the model writes them."""
        ...

    def calls_rules(self, tools: Sequence[Tool], *, parallel: bool, marker: Marker) -> str:
        """Rules of a grammar: `calls` is one call, or with `parallel` one or more."""
        ...

    def prose_rules(self, marker: Marker) -> str:
        """Rules of a grammar: `prose_or_calls` is any text, which may lead to `calls`."""
        ...

    def call_id(self) -> str:
        """A new id for a call, of the form the model's template expects."""
        ...


class Prose:
    """The text around calls, without the white space between them.

    Trailing white space waits until it is known what comes behind it.
    """

    __slots__ = ("_called", "_held", "_spoke")

    def __init__(self) -> None:
        self._held = ""
        self._spoke = False
        self._called = False

    def say(self, text: str) -> list[Piece]:
        text = self._held + text
        said = text.rstrip()
        self._held = text[len(said) :]
        if not said:
            return []
        if self._called and not self._spoke:
            said = said.lstrip()
        self._spoke = True
        return [Content(said)]

    def call(self) -> None:
        """A call comes next."""
        self._held = ""
        self._called = True

    def finish(self) -> list[Piece]:
        held, self._held = self._held, ""
        return [Content(held)] if held and not self._called else []


def random_id(prefix: str, length: int) -> str:
    alphabet = string.ascii_letters + string.digits
    return prefix + "".join(secrets.choice(alphabet) for _ in range(length))


def compact_json(value: Any) -> str:
    """JSON on one line, spaced as models write it."""
    return json.dumps(value, ensure_ascii=False)
