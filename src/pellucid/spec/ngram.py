"""Prompt lookup: the last few tokens stood somewhere before; what followed them may follow again.

    token_ids   a b c d e f   x y   a b c d | e f ...
                        ^               the guess, from here on
                        source      |-----| the last `matched` tokens are those before `source`

Saxena's prompt lookup decoding (2023). It needs no second model, costs microseconds, and is right
where an answer repeats its prompt or itself: summaries, edits of code, extraction, lists.

A place that was found is followed as long as the text goes on as it did there, guessed for or not.
So it is known of every token whether a guess would have been right, and how often guesses are,
by how many tokens had agreed before: `Experience`. A guess of several tokens is as long as pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pellucid.spec.drafter import Wanted
from pellucid.spec.length import NOTHING, Offer, StepTimes, best_offer

MOST_MATCHED = 32  # tokens that agree: more say no more
NEWS = 0.02  # weight of one token against all that were seen before
# Texts that come with so many new tokens are prompts: they are only read, not followed.
READ_AT_ONCE = 64


class Experience:
    """How likely the next token is the one that followed before, by how many had agreed.

    Of all requests together: how far a text agrees with its past says more than whose it is.
    """

    def __init__(self) -> None:
        # To begin with: two that agree say little, ten say a lot.
        self._rates = [matched / (matched + 1.0) for matched in range(MOST_MATCHED + 1)]

    def learn(self, matched: int, right: bool) -> None:
        index = min(matched, MOST_MATCHED)
        self._rates[index] += NEWS * (right - self._rates[index])

    def ahead(self, matched: int, count: int) -> list[float]:
        """Of `count` tokens in turn, each if those before it were right."""
        first = min(matched, MOST_MATCHED)
        rates = self._rates[first : first + count]
        return rates + [self._rates[-1]] * (count - len(rates))


class _Text:
    """A request's tokens: where which of them last stood, and which place they follow now."""

    __slots__ = ("matched", "num_read", "places", "source")

    def __init__(self) -> None:
        self.places: dict[tuple[int, ...], int] = {}  # some tokens -> the index behind the last
        self.num_read = 0
        self.source = 0  # the index of what may come next; 0 if nothing is known
        self.matched = 0


class NgramDrafter:
    """Implements `Drafter`.

    Args:
        shortest, longest: so many of the last tokens have to recur; more are looked for first.
        times: what steps take; without them guesses cost nothing.
    """

    def __init__(self, shortest: int, longest: int, times: StepTimes | None = None) -> None:
        self.experience = Experience()
        self._lengths = range(longest, shortest - 1, -1)
        self.times = times or StepTimes({1: 1.0})
        self._texts: dict[str, _Text] = {}

    def offer(self, wanted: Wanted) -> Offer:
        token_ids = wanted.token_ids
        text = self._texts.get(wanted.request_id)
        if text is None:
            text = self._texts[wanted.request_id] = _Text()
        if len(token_ids) - text.num_read > READ_AT_ONCE:
            self._read(text, token_ids)
        for end in range(text.num_read + 1, len(token_ids) + 1):
            self._follow(text, token_ids, end)
        text.num_read = len(token_ids)
        if not text.source:
            return NOTHING
        rates = self.experience.ahead(text.matched, wanted.count)
        return best_offer(rates, partial(self.times.ratio, wanted.num_decoding))

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        return [
            _continued(each.token_ids, self._texts[each.request_id].source, each.count)
            for each in wanted
        ]

    def learn(self, request_id: str, num_proposed: int, num_accepted: int) -> None:
        """It learns from the texts."""

    def took(self, num_tokens: int, seconds: float) -> None:
        self.times.learn(num_tokens, seconds)

    def forget(self, request_id: str) -> None:
        self._texts.pop(request_id, None)

    def _read(self, text: _Text, token_ids: Sequence[int]) -> None:
        """Remember where tokens stand, all but what ends with the last one."""
        for length in self._lengths:
            begin = max(0, text.num_read + 1 - length)
            grams = zip(*(token_ids[begin + i : -1] for i in range(length)), strict=False)
            text.places.update(zip(grams, range(begin + length, len(token_ids)), strict=False))
        text.num_read = len(token_ids) - 1
        text.source = 0

    def _follow(self, text: _Text, token_ids: Sequence[int], end: int) -> None:
        """Take note of the token before `end`."""
        if text.source:
            right = token_ids[text.source] == token_ids[end - 1]
            self.experience.learn(text.matched, right)
            text.source = text.source + 1 if right else 0
            text.matched += right
        for length in self._lengths:
            if length <= end:
                gram = tuple(token_ids[end - length : end])
                if not text.source and gram in text.places:
                    text.source = text.places[gram]
                    text.matched = length
                text.places[gram] = end


def _continued(token_ids: Sequence[int], begin: int, count: int) -> list[int]:
    """`count` tokens from `begin` on; behind the end, what repeats goes on repeating."""
    period = len(token_ids) - begin
    return [token_ids[begin + i % period] for i in range(count)]
