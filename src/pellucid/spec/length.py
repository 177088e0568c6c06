"""How many tokens to guess, where guesses cost time: Leviathan et al. (2023), section 3.3.

Of k guesses, where the i-th is right with probability a_i if those before it are, a step yields
1 + a_1 + a_1 a_2 + ... tokens on average. What it takes is not simply proportional to k: a step of
few tokens waits for memory and one more costs little, a step of many computes and one more costs
what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

FIRST_ACCEPTANCE = 0.8  # believed of a request of which nothing is known
NEWS = 0.1  # weight of one guess against all that were seen before
FORGETTING = 0.005  # of what was seen, with each step that does not guess: a few steps in 100 try


class Offer(NamedTuple):
    """So many guesses, and the tokens they should bring in the time of a step without guesses."""

    length: int
    rate: float


NOTHING = Offer(0, 1.0)


def best_offer(acceptances: Iterable[float], ratio: Callable[[int], float]) -> Offer:
    """The number of guesses with the most tokens per time; the least among equals, perhaps none.

    `acceptances` are a_1, a_2 and so on, as many as there may be guesses; `ratio` says of a number
    of guesses what its step takes, as a part of one without guesses.
    """
    best = NOTHING
    tokens, right = 1.0, 1.0
    for length, acceptance in enumerate(acceptances, 1):
        right *= acceptance
        tokens += right
        rate = tokens / ratio(length)
        if rate > best.rate:
            best = Offer(length, rate)
    return best


class StepTimes:
    """What steps take, by their number of tokens, between and beyond what was measured.

    That was done with short texts and nothing else to do, or so it should have been. What steps
    take in addition, for attention to long texts, for planning, for others who use the machine, is
    learned from them; and that they take less, if the machine was busy when they were measured.

    Args:
        model: seconds by number of tokens, of the model that answers; one token among them.
        draft: of one that guesses; without it guesses cost only their check.
    """

    def __init__(
        self, model: Mapping[int, float], draft: Mapping[int, float] | None = None
    ) -> None:
        self._model, self._draft = _cleared(model), _cleared(draft or {1: 0.0})
        self._known: dict[int, float] = {}  # what steps of the model take, where it was asked for
        self._pace = 1.0  # what they really take, as a part of what was measured
        self._more = 0.0  # seconds that a step takes in addition

    def without_draft(self) -> StepTimes:
        """The same steps, for guesses that cost only their check."""
        return StepTimes(dict(self._model))

    def ratio(self, num_decoding: int, length: int) -> float:
        """A step with `length` guesses for each of `num_decoding` requests, and the guessing.

        As a part of a step without guesses.
        """
        checking = self._step(num_decoding * (1 + length)) + self._more
        guessing = length * self._pace * _at(self._draft, num_decoding)
        return (checking + guessing) / (self._step(num_decoding) + self._more)

    def best_depth(self, num_decoding: int, guesses: Sequence[tuple[int, float]]) -> int:
        """Where to cut guesses for some of the requests, so that all get the most tokens per time.

        `guesses` are their lengths, each with the chance of each of its tokens if those before it
        are right. The model that guesses computes the first tokens of all at once, then the second
        of those who want more. 0 if no guess at all is better.
        """
        tokens, num_rows, guessing = float(num_decoding), num_decoding, 0.0
        best, best_rate = 0, tokens / (self._step(num_rows) + self._more)
        for depth in range(1, max(length for length, _ in guesses) + 1):
            chances = [chance for length, chance in guesses if length >= depth]
            tokens += sum(chance**depth for chance in chances)
            num_rows += len(chances)
            guessing += self._pace * _at(self._draft, len(chances))
            rate = tokens / (self._step(num_rows) + self._more + guessing)
            if rate > best_rate:
                best, best_rate = depth, rate
        return best

    def reading(self, num_running: int, num_tokens: int) -> float:
        """What the model that guesses takes to read a text, beyond its last token.

        As a part of the share that one of `num_running` requests has in a step without guesses.
        """
        seconds = self._pace * (_at(self._draft, num_tokens) - _at(self._draft, 1))
        return seconds * num_running / (self._step(num_running) + self._more)

    def learn(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long, from plan to result, guessing aside."""
        known = self._step(num_tokens)
        if seconds < known:
            self._pace *= 1.0 - NEWS * (1.0 - seconds / known)
        more = min(max(0.0, seconds - known), known)  # no more than that, or it was a stall
        self._more += NEWS * (more - self._more)

    def _step(self, num_tokens: int) -> float:
        if num_tokens not in self._known:
            self._known[num_tokens] = _at(self._model, num_tokens)
        return self._pace * self._known[num_tokens]


def _cleared(seconds: Mapping[int, float]) -> list[tuple[int, float]]:
    """By number of tokens, without some of what disturbed the measurement, which only adds.

    More tokens never take less, and no more than in proportion.
    """
    rows = sorted(seconds)
    falling = accumulate((seconds[n] for n in reversed(rows)), min)
    rising = list(zip(rows, reversed(list(falling)), strict=True))
    return [(n, min(n * (t / m) for m, t in rising if m <= n)) for n, _ in rising]


def _at(points: list[tuple[int, float]], rows: int) -> float:
    """On the line through the two points around `rows`, or nearest to it."""
    if len(points) == 1:
        return points[0][1]
    index = next((i for i, (n, _) in enumerate(points) if n >= rows and i), len(points) - 1)
    (begin, low), (end, high) = points[index - 1 : index + 1]
    return low + (high - low) * (rows - begin) / (end - begin)


class Acceptance:
    """How likely a request's next guess is right, told by its last ones."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = FIRST_ACCEPTANCE

    def learn(self, num_proposed: int, num_accepted: int) -> None:
        """Guesses up to the first that was wrong were put to the test, those behind it were not."""
        for _ in range(num_accepted):
            self.value += NEWS * (1.0 - self.value)
        if num_accepted < num_proposed:
            self.value -= NEWS * self.value

    def forget(self) -> None:
        """A step went by without a guess: some day it is tried again."""
        self.value += FORGETTING * (FIRST_ACCEPTANCE - self.value)
