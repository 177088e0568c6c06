"""Who promises more guesses; the other goes on following the text."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.sampling_params import SamplingParams
from pellucid.spec.drafter import Wanted
from pellucid.spec.either import Either
from pellucid.spec.length import NOTHING, Offer


class Candidate:
    """Implements `Drafter`: offers what it is told to, and writes down what it hears."""

    def __init__(self, token: int, offers: dict[str, Offer], *, refuses: str = "") -> None:
        self.token, self.offers, self.refuses = token, offers, refuses
        self.asked: list[str] = []
        self.proposed: list[list[str]] = []
        self.learned: list[tuple[str, int, int]] = []
        self.steps: list[tuple[int, float]] = []
        self.forgotten: list[str] = []

    def offer(self, wanted: Wanted) -> Offer:
        self.asked.append(wanted.request_id)
        return self.offers[wanted.request_id]

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        self.proposed.append([each.request_id for each in wanted])
        return [
            [self.token] * each.count * (each.request_id not in self.refuses) for each in wanted
        ]

    def learn(self, request_id: str, num_proposed: int, num_accepted: int) -> None:
        self.learned.append((request_id, num_proposed, num_accepted))

    def took(self, num_tokens: int, seconds: float) -> None:
        self.steps.append((num_tokens, seconds))

    def forget(self, request_id: str) -> None:
        self.forgotten.append(request_id)


def asked(name: str, count: int) -> Wanted:
    return Wanted(name, [1, 2], 1, SamplingParams(), [], [], count, 99, 4, 4)


def test_each_request_is_guessed_for_by_who_promises_more() -> None:
    lookup = Candidate(1, {"a": Offer(2, 1.4), "b": NOTHING, "c": Offer(8, 1.2), "d": NOTHING})
    model = Candidate(2, {"a": Offer(5, 1.3), "b": Offer(1, 1.1), "c": Offer(3, 2.0), "d": NOTHING})
    both = Either(lookup, model)
    offers = {name: both.offer(asked(name, 8)) for name in "abcd"}
    assert offers == {"a": (2, 1.4), "b": (1, 1.1), "c": (3, 2.0), "d": (0, 1.0)}
    assert lookup.asked == model.asked == list("abcd")
    guesses = both.propose([asked(name, offers[name].length) for name in "cab"])
    assert guesses == [[2, 2, 2], [1, 1], [2]]
    assert (lookup.proposed, model.proposed) == ([["a"]], [["c", "b"]])
    both.learn("a", 2, 1)
    both.learn("b", 1, 0)
    assert (lookup.learned, model.learned) == ([("a", 2, 1)], [("b", 1, 0)])


def test_of_equal_promises_the_lookups_counts() -> None:
    lookup, model = (Candidate(k, {"a": Offer(k, 1.5)}) for k in (1, 2))
    both = Either(lookup, model)
    assert both.offer(asked("a", 4)).length == 1
    assert both.propose([asked("a", 1)]) == [[1]]
    assert model.proposed == [], "who has nothing to guess is not called"


def test_what_the_model_does_not_guess_is_looked_up() -> None:
    lookup = Candidate(1, {"a": Offer(2, 1.1), "b": Offer(6, 1.3), "c": NOTHING})
    model = Candidate(2, {name: Offer(4, 1.5) for name in "abc"}, refuses="abc")
    both = Either(lookup, model)
    for name in "abc":
        assert both.offer(asked(name, 8)).length == 4
    assert both.propose([asked(name, 4) for name in "abc"]) == [[1, 1], [1, 1, 1, 1], []]
    assert lookup.proposed == [["a", "b"]]
    both.learn("a", 2, 2)
    assert (lookup.learned, model.learned) == ([("a", 2, 2)], [])


def test_both_hear_of_steps_and_of_who_leaves() -> None:
    candidates = [Candidate(k, {"a": Offer(k, 1.5)}) for k in (1, 2)]
    both = Either(*candidates)
    both.took(3, 0.25)
    both.offer(asked("a", 4))
    for name in ("a", "unknown"):
        both.forget(name)
        both.learn(name, 2, 1)  # of a guess that was under way
    for each in candidates:
        assert (each.steps, each.forgotten, each.learned) == ([(3, 0.25)], ["a", "unknown"], [])
