"""Reads `{"name": "f", "arguments": {...}}` by characters, passing arguments on at once."""

from __future__ import annotations

import json
from enum import Enum, auto

NAME_KEYS = frozenset({"name"})
ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
OTHER_KEYS = frozenset({"type", "id"})
_SPACE = " \t\r\n"


class _At(Enum):
    BEGIN = auto()  # before the {
    KEY = auto()  # before a key, or the }
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()  # before a value
    IN_VALUE = auto()
    COMMA = auto()  # behind a value
    DONE = auto()
    FAILED = auto()


class CallScanner:
    """The state of one object.

    Attributes:
        name: the function's name, once it is complete.
        failed: the text is not such an object; nothing more is read.
        done: the object is complete.
    """

    __slots__ = (
        "_arguments",
        "_at",
        "_bare",
        "_depth",
        "_escaped",
        "_key",
        "_quoted",
        "_raw",
        "_read",
        "name",
    )

    def __init__(self) -> None:
        self.name: str | None = None
        self._at = _At.BEGIN
        self._key = ""
        self._raw: list[str] = []  # of the key or value at hand
        self._depth = 0
        self._quoted = False
        self._escaped = False
        self._arguments: list[str] | None = None  # not yet taken; None: they have not begun
        self._read = False  # the value of the arguments is complete
        self._bare = False  # the arguments stand alone, without an object around them

    @property
    def done(self) -> bool:
        return self._at is _At.DONE

    @property
    def failed(self) -> bool:
        return self._at is _At.FAILED

    @property
    def has_arguments(self) -> bool:
        """Arguments have begun."""
        return self._arguments is not None

    def begin_named(self, name: str) -> None:
        """The name is known already: what follows is the object of the arguments."""
        self.name, self._key, self._bare = name, "arguments", True
        self._at = _At.VALUE

    def take_arguments(self) -> str:
        """The JSON of the arguments that came since the last call."""
        text, self._arguments = "".join(self._arguments or ()), []
        return text

    def feed(self, char: str) -> None:
        """Take the next character."""
        if self._at is _At.IN_KEY:
            self._feed_key(char)
        elif self._at is _At.IN_VALUE:
            self._feed_value(char)
        elif char not in _SPACE:
            self._feed_between(char)

    def _feed_between(self, char: str) -> None:
        expected = {_At.BEGIN: "{", _At.COLON: ":"}
        if self._at is _At.VALUE:
            self._at, self._raw = _At.IN_VALUE, []
            self._depth, self._quoted, self._escaped = 0, False, False
            if char == "{" and self._key in ARGUMENT_KEYS:
                self._arguments = []
            self._feed_value(char)
        elif self._at is _At.KEY and char == '"':
            self._at, self._raw, self._escaped = _At.IN_KEY, [], False
        elif self._at is _At.COMMA and char == ",":
            self._at = _At.KEY
        elif self._at in (_At.COMMA, _At.KEY) and char == "}":
            self._at = _At.FAILED if self.name is None else _At.DONE
        elif expected.get(self._at) == char:
            self._at = _At.KEY if char == "{" else _At.VALUE
        else:
            self._at = _At.FAILED

    def _feed_key(self, char: str) -> None:
        if char == '"' and not self._escaped:
            self._key = "".join(self._raw)
            self._at = _At.COLON if self._is_expected(self._key) else _At.FAILED
            return
        self._escaped = char == "\\" and not self._escaped
        self._raw.append(char)

    def _is_expected(self, key: str) -> bool:
        if key in NAME_KEYS:
            return self.name is None
        return key in OTHER_KEYS or (key in ARGUMENT_KEYS and not self._read)

    def _feed_value(self, char: str) -> None:
        scalar = not self._quoted and self._depth == 0 and self._raw
        if scalar and (char in _SPACE or char in ",}"):  # behind a number or a word
            self._end_value()
            self.feed(char)
            return
        self._keep(char)
        if self._quoted:
            self._quoted = char != '"' or self._escaped
            self._escaped = char == "\\" and not self._escaped
            if not self._quoted and self._depth == 0:
                self._end_value()
        elif char == '"':
            self._quoted = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if self._depth <= 0:
                self._end_value()

    def _keep(self, char: str) -> None:
        self._raw.append(char)
        if self._arguments is not None and self._key in ARGUMENT_KEYS:
            self._arguments.append(char)

    def _end_value(self) -> None:
        raw, self._at = "".join(self._raw), _At.COMMA
        if self._key in ARGUMENT_KEYS:
            self._read = True
            if self._bare:
                self._at = _At.DONE
            elif self._arguments is None:
                self._take_other_arguments(raw)
        elif self._key in NAME_KEYS:
            name = _decoded(raw)
            if isinstance(name, str) and name:
                self.name = name
            else:
                self._at = _At.FAILED

    def _take_other_arguments(self, raw: str) -> None:
        """Arguments that are no object: their JSON within a string, or null for none."""
        value = _decoded(raw)
        if value is None and raw == "null":
            self._arguments = ["{}"]
        elif isinstance(value, str) and isinstance(_decoded(value), dict):
            self._arguments = [value]
        else:
            self._at = _At.FAILED


def _decoded(text: str) -> object:
    """The value of JSON text; None if it is none."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
