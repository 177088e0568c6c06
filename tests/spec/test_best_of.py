"""Whoever promises most guesses; the others go on following the text."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.sampling_params import SamplingParams
from pellucid.spec.best_of import BestOf
from pellucid.spec.drafter import Wanted
from pellucid.spec.length import NOTHING, Offer


class Candidate:
    """Implements `Drafter`: offers what it is told to, and writes down what it hears."""

    def __init__(self, token: int, offers: dict[str, Offer]) -> None:
        self.token, self.offers = token, offers
        self.asked: list[str] = []
        self.proposed: list[list[str]] = []
        self.learned: list[tuple[str, int, int]] = []
        self.steps: list[tuple[int, float]] = []
        self.forgotten: list[str] = []

    def offer(self, wanted: Wanted, num_decoding: int) -> Offer:
        self.asked.append(wanted.request_id)
        return self.offers[wanted.request_id]

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        self.proposed.append([each.request_id for each in wanted])
        return [[self.token] * each.count for each in wanted]

    def learn(self, request_id: str, num_proposed: int, num_accepted: int) -> None:
        self.learned.append((request_id, num_proposed, num_accepted))

    def took(self, num_tokens: int, seconds: float) -> None:
        self.steps.append((num_tokens, seconds))

    def forget(self, request_id: str) -> None:
        self.forgotten.append(request_id)


def asked(name: str, count: int) -> Wanted:
    return Wanted(name, [1, 2], 1, SamplingParams(), [], [], count)


def test_each_request_is_guessed_for_by_whoever_promises_most() -> None:
    one = Candidate(1, {"a": Offer(2, 1.4), "b": NOTHING, "c": Offer(8, 1.2), "d": NOTHING})
    two = Candidate(2, {"a": Offer(5, 1.3), "b": Offer(1, 1.1), "c": Offer(3, 2.0), "d": NOTHING})
    both = BestOf(one, two)
    offers = {name: both.offer(asked(name, 8), 4) for name in "abcd"}
    assert offers == {"a": (2, 1.4), "b": (1, 1.1), "c": (3, 2.0), "d": (0, 1.0)}
    assert one.asked == two.asked == list("abcd")
    guesses = both.propose([asked(name, offers[name].length) for name in "cab"])
    assert guesses == [[2, 2, 2], [1, 1], [2]]
    assert (one.proposed, two.proposed) == ([["a"]], [["c", "b"]])
    both.learn("a", 2, 1)
    both.learn("b", 1, 0)
    assert (one.learned, two.learned) == ([("a", 2, 1)], [("b", 1, 0)])


def test_of_equal_promises_the_first_counts() -> None:
    one, two = (Candidate(k, {"a": Offer(k, 1.5)}) for k in (1, 2))
    both = BestOf(one, two)
    assert both.offer(asked("a", 4), 1).length == 1
    assert both.propose([asked("a", 1)]) == [[1]]
    assert two.proposed == [], "who has nothing to guess is not called"


def test_all_hear_of_steps_and_of_who_leaves() -> None:
    candidates = [Candidate(k, {"a": Offer(k, 1.5)}) for k in (1, 2)]
    both = BestOf(*candidates)
    both.took(3, 0.25)
    both.offer(asked("a", 4), 1)
    for name in ("a", "unknown"):
        both.forget(name)
        both.learn(name, 2, 1)  # of a guess that was under way
    for each in candidates:
        assert (each.steps, each.forgotten, each.learned) == ([(3, 0.25)], ["a", "unknown"], [])
