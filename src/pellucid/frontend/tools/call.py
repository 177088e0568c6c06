"""One call while its text arrives: from the scanner's state to pieces."""

from __future__ import annotations

from pellucid.frontend.tools.base import CallArguments, CallBegin, Piece
from pellucid.frontend.tools.scanner import CallScanner


class CallReader:
    """Reads one call of JSON.

    Args:
        index: of the call in the answer.
        needs_arguments: without them it is no call, but JSON that happens to have a name.

    Attributes:
        raw: everything read, for an answer that turns out not to be a call.
        begun: the call was announced, which cannot be taken back.
    """

    __slots__ = ("_index", "_needs_arguments", "begun", "raw", "scanner")

    def __init__(self, index: int, *, needs_arguments: bool = False) -> None:
        self.scanner = CallScanner()
        self.raw = ""
        self.begun = False
        self._index = index
        self._needs_arguments = needs_arguments

    @property
    def refused(self) -> bool:
        """It is no call: `raw` is text."""
        if self.begun:
            return False
        return self.scanner.failed or (self.scanner.done and not self._is_call())

    @property
    def over(self) -> bool:
        """Nothing more will be read."""
        return self.scanner.done or self.scanner.failed

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """Read up to the end of the call; return its pieces, and the text behind it."""
        announced = self.begun
        at = 0
        while at < len(text) and not self.over:
            self.scanner.feed(text[at])
            at += 1
            # After each character: where a text is cut must not matter.
            self.begun = self.begun or (self._is_call() and not self.scanner.failed)
        if not self.begun:
            self.raw += text[:at]
            return [], text[at:]
        pieces: list[Piece] = []
        if not announced:
            pieces.append(CallBegin(self._index, self.scanner.name or ""))
        if arguments := self._take_arguments():
            pieces.append(CallArguments(self._index, arguments))
        return pieces, text[at:]

    def _take_arguments(self) -> str:
        if self.scanner.has_arguments:
            return self.scanner.take_arguments()
        return "{}" if self.scanner.done else ""

    def _is_call(self) -> bool:
        scanner = self.scanner
        if scanner.name is None:
            return False
        return scanner.has_arguments or (scanner.done and not self._needs_arguments)
