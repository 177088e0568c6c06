"""Token ids to text while they arrive: whole characters only, and never past a stop string."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Iterable, Sequence
from functools import lru_cache

from pellucid.frontend.tokenizer import Tokenizer, strip_spaces
from pellucid.sampling_params import SamplingParams


class Detokenizer:
    """The text of one answer, piece by piece.

    All pieces and `finish` together are `decode(prompt + answer)` without `decode(prompt)`: the
    first word keeps its leading space unless it starts the whole text. Each token costs one list
    lookup and the decoding of its own bytes, however long the answer is. (`tokenizers` has a
    DecodeStream; it decodes a window again for every token, fails after bytes that are not UTF-8,
    and cannot give out what it holds at the end.)

    `params.spaces_between_special_tokens` has nothing to act on: no vocabulary that we read puts
    spaces between special tokens.
    """

    __slots__ = ("_begun", "_in_character", "_skipped", "_strip", "_tokenizer")

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, prompt_ids: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if params.skip_special_tokens else frozenset[int]()
        tail = self._prompt_tail(prompt_ids)
        # A prompt of token ids may end inside a character, which the answer then completes.
        self._begun = tail[utf_8_decode(tail, "replace", False)[1] :]  # bytes of a character
        self._in_character = bool(self._begun)
        self._strip = 0 if tail else tokenizer.num_stripped_spaces

    def push(self, token_ids: Iterable[int]) -> str:
        """Take new tokens; return the text that is certain now, often empty."""
        return self._text(self._data(token_ids), final=False)

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never completed. Call it once."""
        return self._text(b"", final=True)

    def _data(self, token_ids: Iterable[int]) -> bytes:
        token_bytes, skipped = self._tokenizer.token_bytes, self._skipped
        return b"".join([token_bytes(i) for i in token_ids if i not in skipped])

    def _text(self, data: bytes, *, final: bool) -> str:
        data = self._begun + data
        text, num_decoded = utf_8_decode(data, "replace", final)
        self._begun = data[num_decoded:]
        if text and self._in_character:
            self._in_character = False
            text = text.removeprefix("\ufffd")  # the prompt's own broken character
        if text and self._strip:
            text, self._strip = strip_spaces(text, self._strip), 0
        return text

    def _prompt_tail(self, prompt_ids: Sequence[int]) -> bytes:
        """The end of the prompt: three bytes hold any unfinished character."""
        tail = b""
        for token_id in reversed(prompt_ids):
            tail = self._data((token_id,)) + tail
            if len(tail) >= 3:
                break
        return tail


class StopChecker:
    """Cuts a text at the first of its stop strings, without showing what may be the start of one.

    The first is the one that is complete first, the longest if several end together; so the cut
    does not depend on how the text was divided into pieces. All stop strings are followed at once,
    by Knuth, Morris and Pratt's automaton: the cost per character does not depend on their length.
    """

    __slots__ = ("_held", "_include", "_matched", "_matchers")

    def __init__(self, stop: Sequence[str], include: bool = False) -> None:
        self._matchers = [_Matcher(s) for s in sorted(stop, key=len, reverse=True)]
        self._include = include
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """Take new text; return what may be shown, and the stop string if one is complete.

        After a match the answer is over: whatever is pushed then is dropped.
        """
        if self._matched is not None:
            return "", self._matched
        text = self._held + text
        for end, char in enumerate(text[len(self._held) :], start=len(self._held) + 1):
            self._matched = self._advance(char)
            if self._matched is not None:
                self._held = ""
                cut = end if self._include else end - len(self._matched)
                return text[:cut], self._matched
        shown = len(text) - max(matcher.length for matcher in self._matchers)
        self._held = text[shown:]
        return text[:shown], None

    def flush(self) -> str:
        """What was held back, once no more text can come."""
        return self._held

    def _advance(self, char: str) -> str | None:
        for matcher in self._matchers:  # longest first
            if matcher.feed(char):  # which ends the answer: the others need not follow
                return matcher.pattern
        return None


class _Matcher:
    """Follows one pattern: `length` is how much of it the text seen so far ends with."""

    __slots__ = ("_fallback", "length", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.length = 0
        self._fallback = _borders(pattern)

    def feed(self, char: str) -> bool:
        """Take one more character; return whether the pattern is complete with it."""
        self.length = _next(self.pattern, self._fallback, self.length, char)
        return self.length == len(self.pattern)


@lru_cache(maxsize=256)  # all answers of a request follow the same patterns
def _borders(pattern: str) -> list[int]:
    """[n]: the length of the longest proper border of pattern[: n + 1]."""
    borders = [0]
    for char in pattern[1:]:
        borders.append(_next(pattern, borders, borders[-1], char))
    return borders


def _next(pattern: str, borders: Sequence[int], length: int, char: str) -> int:
    while length and pattern[length] != char:
        length = borders[length - 1]
    return length + (pattern[length] == char)
