"""Prompt lookup: the last few tokens stood somewhere before; what followed them may follow again.

Saxena's prompt lookup decoding (2023). It needs no second model, costs microseconds, and is right
where an answer repeats its prompt or itself: summaries, edits of code, extraction, lists.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from pellucid.spec.drafter import Wanted

TOKEN_BYTES = 4


class _Text:
    """A request's tokens as bytes, which are searched faster than a list."""

    __slots__ = ("begin", "data", "num_trusted")

    def __init__(self) -> None:
        self.data = bytearray()
        self.begin = 0  # of what is guessed to follow once more
        self.num_trusted: int | None = None  # tokens that the next guess may have; None: any number

    def __len__(self) -> int:
        return len(self.data) // TOKEN_BYTES

    def last(self, pattern: bytes) -> int | None:
        """The index of the token behind the latest `pattern` that something follows."""
        end = len(self.data) - TOKEN_BYTES
        while (at := self.data.rfind(pattern, 0, end)) >= 0:
            if at % TOKEN_BYTES == 0:
                return (at + len(pattern)) // TOKEN_BYTES
            end = at + len(pattern) - 1  # it began inside a token
        return None


class NgramDrafter:
    """Implements `Drafter`.

    Of the last `longest` tokens it looks for the latest place where they stood before, then of one
    less, down to `shortest`. After a guess that was wrong the request's next ones are shorter, and
    longer again as they come true.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        self._texts: dict[str, _Text] = {}

    def length(
        self, request_id: str, token_ids: Sequence[int], most: int, num_decoding: int
    ) -> int:
        text = self._texts.setdefault(request_id, _Text())
        text.data += array("i", token_ids[len(text) :]).tobytes()
        if text.num_trusted is not None:
            most = min(most, text.num_trusted)
        for length in self._lengths:
            if length < len(text):
                begin = text.last(bytes(text.data[-length * TOKEN_BYTES :]))
                if begin is not None:
                    text.begin = begin
                    return most
        return 0

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        return [
            _continued(each.token_ids, self._texts[each.request_id].begin, each.count)
            for each in wanted
        ]

    def learn(self, request_id: str, num_proposed: int, num_accepted: int) -> None:
        text = self._texts.get(request_id)
        if text is not None:
            right = num_accepted == num_proposed
            text.num_trusted = 2 * num_proposed if right else num_accepted + 1

    def forget(self, request_id: str) -> None:
        self._texts.pop(request_id, None)


def _continued(token_ids: Sequence[int], begin: int, count: int) -> list[int]:
    """`count` tokens from `begin` on; behind the end, what repeats goes on repeating."""
    period = len(token_ids) - begin
    return [token_ids[begin + i % period] for i in range(count)]
