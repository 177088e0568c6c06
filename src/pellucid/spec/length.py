"""How many tokens to guess, where a guess costs time: Leviathan et al. (2023), section 3.3.

Of k guesses, each right with probability a if those before it are, a step yields (1 - a^(k+1)) /
(1 - a) tokens on average; it takes 1 + k c of the time of a step without guesses, if one more guess
costs c.
"""

from __future__ import annotations

FIRST_ACCEPTANCE = 0.8  # believed of a request of which nothing is known
NEWS = 0.1  # weight of one guess against all that were seen before
FORGETTING = 0.005  # of what was seen, with each step that does not guess: a few steps in 100 try


def best_length(acceptance: float, cost: float, most: int) -> int:
    """The number of guesses, 0 to `most`, with the most tokens per time; the least among equals."""
    best, best_rate = 0, 1.0
    tokens, right = 1.0, 1.0
    for length in range(1, most + 1):
        right *= acceptance
        tokens += right
        rate = tokens / (1.0 + length * cost)
        if rate <= best_rate:  # it rises, then falls
            return best
        best, best_rate = length, rate
    return best


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
