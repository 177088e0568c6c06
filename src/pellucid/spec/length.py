"""How many tokens to guess, where guesses cost time: Leviathan et al. (2023), section 3.3.

Of k guesses, each right with probability a if those before it are, a step yields (1 - a^(k+1)) /
(1 - a) tokens on average. What it takes is not simply proportional to k: a step of few tokens waits
for memory and one more costs little, a step of many computes and one more costs what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate

FIRST_ACCEPTANCE = 0.8  # believed of a request of which nothing is known
NEWS = 0.1  # weight of one guess against all that were seen before
FORGETTING = 0.005  # of what was seen, with each step that does not guess: a few steps in 100 try


def best_length(acceptance: float, ratio: Callable[[int], float], most: int) -> int:
    """The number of guesses, 0 to `most`, with the most tokens per time; the least among equals.

    `ratio` says of a number of guesses what its step takes, as a part of one without guesses.
    """
    best, best_rate = 0, 1.0
    tokens, right = 1.0, 1.0
    for length in range(1, most + 1):
        right *= acceptance
        tokens += right
        rate = tokens / ratio(length)
        if rate > best_rate:
            best, best_rate = length, rate
    return best


class StepTimes:
    """What steps take, by their number of tokens, between and beyond what was measured.

    Args:
        model, draft: seconds by number of tokens, of the model that answers and of the one that
            guesses; one token among them.
    """

    def __init__(self, model: Mapping[int, float], draft: Mapping[int, float]) -> None:
        self._model, self._draft = _rising(model), _rising(draft)
        self._ratios: dict[tuple[int, int], float] = {}

    def ratio(self, num_decoding: int, length: int) -> float:
        """A step with `length` guesses for each of `num_decoding` requests, and the guessing.

        As a part of a step without guesses.
        """
        key = num_decoding, length
        if key not in self._ratios:
            checking = _at(self._model, num_decoding * (1 + length))
            guessing = length * _at(self._draft, num_decoding)
            self._ratios[key] = (checking + guessing) / _at(self._model, num_decoding)
        return self._ratios[key]


def _rising(seconds: Mapping[int, float]) -> list[tuple[int, float]]:
    """By number of tokens; more of them never take less, whatever was measured."""
    rows = sorted(seconds)
    return list(zip(rows, accumulate((seconds[n] for n in rows), max), strict=True))


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
