"""Thoughts between `<think>` and `</think>`, told apart from the answer while it arrives."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from pellucid.frontend.markers import split_at_marker

BEGIN, END = "<think>", "</think>"


class Opening(Enum):
    """How an answer begins."""

    THINKING = auto()  # with thoughts, whose opening marker may be missing
    MAYBE = auto()  # with thoughts if it begins with the marker
    ANSWER = auto()  # the prompt has closed the thoughts already


class ReasoningFormat(Protocol):
    """One way of marking thoughts."""

    def opening(self, prompt: str) -> Opening:
        """How a new answer to a prompt that ends with `prompt` begins."""
        ...


def opening_behind(begun: str) -> Opening:
    """How an answer goes on that has begun with `begun`."""
    return Opening.THINKING if begun.rfind(BEGIN) > begun.rfind(END) else Opening.ANSWER


class _At(Enum):
    START = auto()  # what begins is not decided yet
    THOUGHT = auto()
    GAP = auto()  # white space behind the thoughts
    ANSWER = auto()


class ReasoningParser:
    """Splits one answer; how its text is cut into pieces does not change what comes out in all.

    White space around the markers belongs to neither part.
    """

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._at = _At.ANSWER if opening is Opening.ANSWER else _At.START
        self.has_begun = opening is Opening.THINKING  # thoughts were found, or are certain
        self._text = ""  # read, but not yet decided
        self._space = ""  # at the end of the thoughts so far
        self._thought = False  # something was

    @property
    def is_over(self) -> bool:
        """Whether no thought can follow."""
        return self._at in (_At.GAP, _At.ANSWER)

    def push(self, text: str) -> tuple[str, str]:
        """Take text; return what is certain to be thought, and to be the answer."""
        self._text += text
        thought = answer = ""
        if self._at is _At.START:
            self._start()
        if self._at is _At.THOUGHT:
            thought = self._read_thought()
        if self._at is _At.GAP:
            self._text = self._text.lstrip()
            self._at = _At.ANSWER if self._text else _At.GAP
        if self._at is _At.ANSWER:
            answer, self._text = self._text, ""
        return thought, answer

    def finish(self) -> tuple[str, str]:
        """No text will follow: return what was held back."""
        text, self._text = self._text, ""
        if self._at is _At.START and self._opening is Opening.MAYBE:
            return "", text
        return self._trimmed(text), ""

    def _start(self) -> None:
        text = self._text.lstrip()
        if text.startswith(BEGIN):
            self._text, self._at = text[len(BEGIN) :], _At.THOUGHT
        elif not BEGIN.startswith(text):
            self._at = _At.ANSWER if self._opening is Opening.MAYBE else _At.THOUGHT
        self.has_begun = self.has_begun or self._at is _At.THOUGHT

    def _read_thought(self) -> str:
        before, behind = split_at_marker(self._text, END)
        if behind is None:
            self._text = self._text[len(before) :]
        else:
            self._text, self._at = behind, _At.GAP
        return self._trimmed(before)

    def _trimmed(self, text: str) -> str:
        """`text` without the white space at its end, which waits for what follows."""
        text = self._space + text
        said = text.rstrip()
        self._space = text[len(said) :]
        if said and not self._thought:
            said, self._thought = said.lstrip(), True
        return said
